"""TinyWorld's word list. Every word is one token, as it is one token of CLIP's own vocabulary."""

from __future__ import annotations

from typing import Any

from .captions import OPENINGS
from .world import BACKGROUNDS, BODIES, COLOURS, PATTERNS, POSITIONS, SHAPES, SIZES

LENGTH = 77
START, END = 0, 1  # END also pads, as in CLIP


def _vocabulary() -> tuple[str, ...]:
    sentences = (*OPENINGS, "and on at the with dotted background")
    words = [w for sentence in sentences for w in sentence.split()]
    for group in (COLOURS, BODIES, BACKGROUNDS, PATTERNS, SHAPES, SIZES, POSITIONS):
        words.extend(group)
    return tuple(dict.fromkeys(words))


WORDS = _vocabulary()
VOCABULARY_SIZE = 64  # room for words a later world may add; the first two are START and END


def tokenizer_file() -> dict[str, Any]:
    """What ``tokenizer/words.json`` beside the weights holds."""
    ids = {word: i for i, word in enumerate(WORDS, start=2)}
    return {"start": START, "end": END, "length": LENGTH, "words": ids}
