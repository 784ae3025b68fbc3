"""Drawing what is being learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...infusion_core.concepts import LoadedConcept
from .install import apply

STEPS, GUIDANCE = 12, 6.0


def draw(
    model: Any, clip: Any, vae: Any, concept: LoadedConcept, prompts: Sequence[str], latent: Tensor
) -> list[Tensor]:
    """A quick picture of each prompt with a concept, (1, H, W, 3), always from the same noise.

    Args:
        model: MODEL.
        clip: CLIP.
        vae: VAE.
        concept: as learned so far.
        prompts: name the concept's word.
        latent: a latent (1, C, H, W) of the size to draw.
    """
    return draw_as_is(*apply(model, clip, [concept], "shared"), vae, prompts, latent)


def draw_as_is(model: Any, clip: Any, vae: Any, prompts: Sequence[str], latent: Tensor) -> list[Tensor]:
    """A quick picture of each prompt, (1, H, W, 3); arguments as of `draw`."""
    pictures = []
    with torch.inference_mode():
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        empty = torch.zeros_like(latent)
        for seed, prompt in enumerate(prompts):
            positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            noise = comfy.sample.prepare_noise(empty, seed)
            drawn = comfy.sample.sample(
                model, noise, STEPS, GUIDANCE, "dpmpp_2m", "karras", positive, negative, empty, disable_pbar=True,
                seed=seed,
            )  # fmt: skip
            pictures.append(vae.decode(drawn))
    return pictures
