"""Prompts for the meter of a LoRA, read by a diffusers model's text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..advisor import watched_words
from ..captions import CAPTION_TEMPLATES
from ..denoiser import EncodedPrompt
from ..errors import InfusionError
from ..training.gauges import Unsaid, unsaid_prompts
from .text import TextPath


def unsaid_of(text: TextPath, word: str, phrase: str, template: str = CAPTION_TEMPLATES[0]) -> Unsaid:
    """What a LoRA that learns `phrase` should leave as it is, and a caption whose attention is watched.

    Args:
        text: the model's. Prompts that it does not know a word of are left out.
        word: the class word.
        phrase: what is said for the subject.
        template: of a caption.
    """
    subject, others = watched_words(template, phrase)
    caption = template.replace("{}", phrase)
    watched = {one: text.encode(caption, {one: one}) for one in (subject, *others)}
    return Unsaid(
        list(_read(text, unsaid_prompts(word, phrase))),
        {one: read for one, read in watched.items() if read.spans[0]},
        subject,
    )


def _read(text: TextPath, prompts: Sequence[str]) -> Iterator[EncodedPrompt]:
    for prompt in prompts:
        try:
            yield text.encode(prompt)
        except InfusionError:  # TinyWorld's model knows few words
            continue
