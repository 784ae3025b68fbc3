"""Prompts for the meter of a LoRA, read by a diffusers model's text encoders."""

from __future__ import annotations

from collections.abc import Sequence

from ..captions import CAPTION_TEMPLATES
from ..denoiser import EncodedPrompt
from ..errors import InfusionError
from ..training.gauges import Unsaid
from .text import TextPath


def unsaid_of(text: TextPath, word: str, phrase: str, template: str = CAPTION_TEMPLATES[0]) -> Unsaid:
    """As `Unsaid.read`, by a model's text encoders; prompts that they do not know a word of are left out."""

    def plain(prompts: Sequence[str]) -> list[EncodedPrompt]:
        read = []
        for prompt in prompts:
            try:
                read.append(text.encode(prompt))
            except InfusionError:  # TinyWorld's model knows few words
                continue
        return read

    return Unsaid.read(word, phrase, template, plain, lambda caption, one: text.encode(caption, {one: one}))
