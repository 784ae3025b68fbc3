"""Captions for training, neutral so that the word's own tokens carry the subject, and prompts about other things."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .errors import InfusionError
from .paths import is_there
from .tokens import says

CAPTION_SUFFIX = ".txt"  # of a caption file, beside its photo
WORD_FILE = "word.txt"  # in a folder of photos: its class word
MOST_CAPTION = 100_000  # bytes of it
MOST_PREVIEWS = 8  # prompts that are drawn while training
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


def fill(templates: tuple[str, ...], word: str, what: str = "caption template") -> tuple[str, ...]:
    """The templates with a word in place of ``{}``; `what` they are, for errors.

    Raises:
        InfusionError: no templates, or one without ``{}``.
    """
    if not templates:
        raise InfusionError(f"no {what}s; give at least one, such as 'a photo of a {{}}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InfusionError(f"the {what} {template!r} must hold {{}} once, where the word goes")
    return tuple(t.replace("{}", word) for t in templates)


def preview_prompts(templates: Sequence[str], phrase: str) -> tuple[str, ...]:
    """What is drawn of a subject while it is learned: templates with ``{}`` for it; of none a neutral one.

    Raises:
        InfusionError: a template without ``{}``, with a ``<name>`` that is nothing, or too many of them.
    """
    if len(templates) > MOST_PREVIEWS:
        raise InfusionError(f"{len(templates)} preview prompts; give at most {MOST_PREVIEWS}, each takes time to draw")
    prompts = fill(tuple(templates) or CAPTION_TEMPLATES[:1], phrase, "preview prompt")
    for prompt in prompts:
        placeholder = re.search(r"<[^<>]*>", prompt)
        if placeholder:
            raise InfusionError(f"the preview prompt {prompt!r} names {placeholder[0]}; write {{}} for the subject")
    return prompts


def said_of(
    own: Sequence[Sequence[str]], names: Sequence[str], templates: Sequence[str], word: str, needed: bool = True
) -> tuple[list[str], list[list[int]] | None]:
    """All captions, and which of them, by number, may be said of each photo; None where any may be said of any.

    Args:
        own: lines that belong to each photo, with ``{}`` for the subject or saying it themselves; none for most.
        names: of the photos, for errors.
        templates: filled, for photos without.
        word: what is said for the subject.
        needed: each caption must say it.

    Raises:
        InfusionError: a caption of a photo does not.
    """
    if not any(own):
        return list(templates), None
    every: list[str] = []
    said = []
    for lines, name in zip(own, names, strict=True):
        captions = [_filled(line, word, name, needed) for line in lines] or list(templates)
        every += [caption for caption in dict.fromkeys(captions) if caption not in every]
        said.append([every.index(caption) for caption in captions])
    return every, said


def _filled(line: str, word: str, named: str, needed: bool) -> str:
    if needed and "{}" not in line and not says(line, word):
        raise InfusionError(f"a caption of {named}, {line[:80]!r}, says neither {{}} nor {word!r}; write where it is")
    return line.replace("{}", word)


def read_captions(path: Path) -> tuple[str, ...]:
    """The lines of a caption file; none where there is no such file.

    Raises:
        InfusionError: it is no text, or too long to be a caption.
    """
    if not is_there(path):
        return ()
    if path.stat().st_size > MOST_CAPTION:
        raise InfusionError(f"{path.name} is no caption: it has more than {MOST_CAPTION} bytes; write a line or a few")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InfusionError(f"the caption {path.name} cannot be read ({error}); save it as text in UTF-8") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def word_of(folder: Path, otherwise: str = "") -> str:
    """The class word of a folder of photos: what its ``word.txt`` says, else the one given, else the folder's name.

    Raises:
        InfusionError: it cannot be a word, see `class_word`, or the file cannot be read.
    """
    return class_word(" ".join(read_captions(folder / WORD_FILE)) or otherwise or folder.name)


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
