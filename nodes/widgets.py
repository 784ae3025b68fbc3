"""What users write into text widgets, and what they connect to inputs that take a list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..infusion_core.captions import CAPTION_TEMPLATES, fill, said_of
from ..infusion_core.errors import InfusionError

_LONGEST_NAME = 60  # letters: of three bytes each they still leave room for a date and a number


def lines_of(text: str) -> list[str]:
    """The lines of a text widget that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def plain_name(text: str) -> str:
    """A text as part of a file's name, on every system: of at most 60 letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^\w-]+", "-", text).strip("-")[:_LONGEST_NAME]


def below(root: Path, name: str) -> Path | None:
    """Where a written name leads below a folder, links followed; None for one that leads out or names no file."""
    if not name.isprintable():
        return None
    path, place = (root / name).resolve(), root.resolve()
    return path if path.is_relative_to(place) and path != place else None


def split_words(text: str) -> list[str]:
    """The words of a text widget, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parts_of(text: str) -> list[str]:
    """The parts of a text widget that hold something, separated by commas, semicolons or lines."""
    return [part.strip() for part in re.split(r"[,;\n]+", text) if part.strip()]


def captions_of(
    given: Sequence[str], photos: int, word: str, flip: bool, needed: bool = True
) -> tuple[list[str], list[list[int]] | None]:
    """All captions, and which of them may be said of each photo; None where any may be said of any.

    Args:
        given: one text for all photos, or one for each; empty ones for neutral captions.
        photos: how many there are.
        word: what is said for the subject.
        flip: photos have their mirrored ones behind them, of which the same is said.
        needed: each caption of a photo must say it.

    Raises:
        InfusionError: another number of texts, or a caption does not say the word.
    """
    neutral, lines = fill(CAPTION_TEMPLATES, word), lines_of(given[0])
    if len(given) == 1 and (photos != 1 or not all(word.casefold() in line.casefold() for line in lines)):
        return list(fill(tuple(lines), word) if lines else neutral), None
    if len(given) != photos:
        raise InfusionError(
            f"{len(given)} captions for {photos} photos; connect one for each, as Load Subject Photos gives them, "
            "or one for all"
        )
    names = [f"photo {number}" for number in range(1, photos + 1)]
    every, said = said_of([lines_of(text) for text in given], names, neutral, word, needed)
    return every, said * 2 if said is not None and flip else said


def only(node: str, given: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The one value of each input that takes no list, where the host gives every input as one.

    Raises:
        InfusionError: an input has several.
    """
    for name, values in given.items():
        if len(values) != 1:
            raise InfusionError(
                f"{node} takes a list of images, masks and captions only, but {name} has {len(values)} values; connect "
                f"one, or use a node for each"
            )
    return {name: values[0] for name, values in given.items()}
