"""Prompts for the meter of a LoRA, read by the host's CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...infusion_core.captions import CAPTION_TEMPLATES
from ...infusion_core.denoiser import EncodedPrompt
from ...infusion_core.training.gauges import Unsaid
from .denoiser import encode_caption, encode_captions


@torch.no_grad()
def unsaid_of(model: Any, clip: Any, word: str, phrase: str, latents: Tensor) -> Unsaid:
    """As `Unsaid.read`, by the host's CLIP.

    Args:
        model, clip: the host's.
        word, phrase: see there.
        latents: (N, C, H, W), for conditioning that depends on the size.
    """
    return Unsaid.read(
        word,
        phrase,
        CAPTION_TEMPLATES[0],
        lambda prompts: [EncodedPrompt(encode_caption(model, clip, prompt, latents)) for prompt in prompts],
        lambda caption, one: encode_captions(model, clip, [caption], one, latents)[0],
    )
