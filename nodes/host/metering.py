"""Prompts for the meter of a LoRA, read by the host's CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...infusion_core.advisor import watched_words
from ...infusion_core.captions import CAPTION_TEMPLATES
from ...infusion_core.denoiser import EncodedPrompt
from ...infusion_core.training.gauges import Unsaid, unsaid_prompts
from .denoiser import encode_caption, encode_captions


@torch.no_grad()
def unsaid_of(model: Any, clip: Any, word: str, phrase: str, latents: Tensor) -> Unsaid:
    """What a LoRA that learns `phrase` should leave as it is, and a caption whose attention is watched.

    Args:
        model, clip: the host's.
        word: the class word.
        phrase: what is said for the subject.
        latents: (N, C, H, W), for conditioning that depends on the size.
    """
    template = CAPTION_TEMPLATES[0]
    subject, others = watched_words(template, phrase)
    caption = template.replace("{}", phrase)
    watched = {one: encode_captions(model, clip, [caption], one, latents)[0] for one in (subject, *others)}
    prompts = [EncodedPrompt(encode_caption(model, clip, text, latents)) for text in unsaid_prompts(word, phrase)]
    return Unsaid(prompts, {one: read for one, read in watched.items() if read.spans[0]}, subject)
