"""Captions for training, neutral so that the word's own tokens carry the subject, and prompts about other things."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from .errors import InfusionError

LONGEST_WORD = 200  # letters; a concept file takes no more
CAPTION_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a rendering of a {}",
    "a good photo of a {}",
    "a clean photo of a {}",
    "a bright photo of a {}",
    "a nice photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
)
# What a divergence on other prompts is measured with unless the user gives other ones.
OTHER_PROMPTS = ("a photo of a dog", "a photo of a house by the sea", "a bowl of fruit on a table", "a street at night")


def fill(templates: tuple[str, ...], word: str) -> tuple[str, ...]:
    """The templates with a word in place of ``{}``.

    Raises:
        InfusionError: no templates, or one without ``{}``.
    """
    if not templates:
        raise InfusionError("no caption templates; give at least one, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InfusionError(f"the caption template {template!r} must hold {{}} once, where the word goes")
    return tuple(t.replace("{}", word) for t in templates)


def captions_of_photo(lines: Sequence[str], word: str, named: str, needed: bool = True) -> tuple[str, ...]:
    """A photo's own captions, with a word in place of ``{}`` or as they are where they say it themselves.

    Args:
        lines: as written.
        word: what is said for the subject.
        named: whose captions they are, for errors.
        needed: each must say it.

    Raises:
        InfusionError: one says neither.
    """
    found = []
    for line in lines:
        if needed and line.count("{}") != 1 and word.casefold() not in line.casefold():
            raise InfusionError(
                f"a caption of {named}, {line[:80]!r}, says neither {{}} nor {word!r}; write where it is"
            )
        found.append(line.replace("{}", word, 1))
    return tuple(found)


def class_word(word: str) -> str:
    """A concept's word as the user wrote it, without spaces around it.

    Raises:
        InfusionError: it is not a word that a prompt could say and a file could be named after.
    """
    word = word.strip()
    if not word:
        raise InfusionError("the word is empty; write the class word that prompts will say, such as 'cat'")
    if len(word) > LONGEST_WORD or not _alphanumeric(word[0]) or not all(map(_belongs, word)):
        raise InfusionError(
            f"{word[:40]!r} cannot be a concept's word; write a plain class word such as 'cat' or 'teddy bear', "
            "of letters, digits, spaces, hyphens and apostrophes"
        )
    return word


def _alphanumeric(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"  # M: the vowel signs of Hindi, Thai and others


def _belongs(letter: str) -> bool:
    return letter in " -_.'\u2019" or _alphanumeric(letter)
