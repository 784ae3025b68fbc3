"""TinyWorld's tokenizer: a word list. Every word is one token, as it is one token of CLIP's own vocabulary."""

from __future__ import annotations

import difflib

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
_IDS = {word: i for i, word in enumerate(WORDS, start=2)}


def word_ids(text: str) -> list[int]:
    """Token ids of a text, without start, end or padding.

    Raises:
        ValueError: a word is not in TinyWorld; the message names it and the nearest known words.
    """
    ids = []
    for word in text.lower().replace(",", " ").replace(".", " ").split():
        if word not in _IDS:
            near = difflib.get_close_matches(word, WORDS, 3, 0.5) or WORDS
            raise ValueError(f"TinyWorld does not know the word {word!r}; try: {', '.join(near)}")
        ids.append(_IDS[word])
    return ids


def encode(text: str, length: int = LENGTH) -> list[int]:
    """Token ids of a text with start and end, padded with END to `length`.

    Raises:
        ValueError: an unknown word, or more words than fit.
    """
    ids = word_ids(text)
    if len(ids) > length - 2:
        raise ValueError(f"the text has {len(ids)} words; {length - 2} fit")
    return [START, *ids, *[END] * (length - 1 - len(ids))]
