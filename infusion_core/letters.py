"""Letters of any script: which are the same, and where a word can stand among them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Scripts that are written without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, Tai Le, New Tai Lue, Tai
# Tham, Balinese, Javanese, Tai Viet, kana, bopomofo and all Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3005-\u3007"
    "\u3031-\u303c\u3041-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9df\ua9e0-\ua9ff\uaa60-\uaadf"
    "\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"
)


def folded(text: str) -> str:
    """A text as CLIP's tokenizers read it: accents composed (NFC), each letter in lower case."""
    if text.isascii():
        return text.lower()
    return "".join(map(str.lower, unicodedata.normalize("NFC", text)))


def places(text: str, parts: Sequence[str], gap: str = r"\s+") -> Iterator[tuple[int, int]]:
    """Where a tokenizer can see a word in a text, (start, end), left to right, not overlapping.

    A tokenizer sees words where letters end. In a script without spaces any letter can be a word's first or last.

    Args:
        text: folded.
        parts: of the word, folded.
        gap: pattern of what is between them.
    """
    pattern, at = re.compile(gap.join(map(re.escape, parts))), 0
    while parts and (match := pattern.search(text, at)):
        start, at = match.span()
        if _divided(text, start) and _divided(text, at):
            yield start, at
        else:
            at = start + 1


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether one of a word's `places` is the word itself and not a part of another.

    Vowel signs and accents of their own belong to the letter before them, which many tokenizers do not know.
    """
    return _apart(text, start) and _apart(text, end)


def _divided(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    return not (before.isalpha() and after.isalpha()) or _unspaced(before, after)


def _apart(text: str, at: int) -> bool:
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    if _is_sign(after):
        return False
    return not ((before.isalpha() or _is_sign(before)) and after.isalpha()) or _unspaced(before, after)


def _unspaced(before: str, after: str) -> bool:
    return bool(_UNSPACED.match(before) or _UNSPACED.match(after))


def _is_sign(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"
