"""Drawing what is being learned."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...infusion_core.concepts import LoadedConcept
from .install import apply

STEPS, GUIDANCE = 12, 6.0


def draw(model: Any, clip: Any, vae: Any, concept: LoadedConcept, prompt: str, latent: Tensor) -> Tensor:
    """A quick picture of a prompt with a concept, (1, H, W, 3).

    Args:
        model: MODEL.
        clip: CLIP.
        vae: VAE.
        concept: as learned so far.
        prompt: names the concept's word.
        latent: a latent (1, C, H, W) of the size to draw.
    """
    return draw_as_is(*apply(model, clip, [concept], "shared"), vae, prompt, latent)


def draw_as_is(model: Any, clip: Any, vae: Any, prompt: str, latent: Tensor) -> Tensor:
    """A quick picture of a prompt, (1, H, W, 3); arguments as of `draw`."""
    with torch.inference_mode():
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        empty = torch.zeros_like(latent)
        noise = comfy.sample.prepare_noise(empty, 0)
        drawn = comfy.sample.sample(
            model, noise, STEPS, GUIDANCE, "dpmpp_2m", "karras", positive, negative, empty, disable_pbar=True, seed=0
        )
        picture: Tensor = vae.decode(drawn)
    return picture
