"""Pictures of what a run has learned so far: some prompts, at some steps, always from the same noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .atomic import write_atomic
from .grid import labelled_grid, shrunk
from .snapshot_files import PICTURE, file_of

MOST_ROWS = 16  # steps in one picture; of more, so many that lie evenly apart
_TOLD = "infusion-previews"  # key of a PNG's text: step and prompts, as JSON
_FILES = f"step-*{PICTURE}"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Strip:
    """What was drawn after a step.

    Attributes:
        step: of the run.
        prompts: that were drawn.
        pictures: one for each, all of one size.
    """

    step: int
    prompts: tuple[str, ...]
    pictures: tuple[Image.Image, ...]

    @property
    def small(self) -> Strip:
        """The same with pictures that a grid shows whole, for many to be kept in memory."""
        return replace(self, pictures=tuple(map(shrunk, self.pictures)))

    def save(self, folder: Path) -> Path:
        """Write the pictures side by side to ``step-00050.png``, atomically.

        Raises:
            InfusionError: the disk is full.
        """
        width, height = self.pictures[0].size
        sheet = Image.new("RGB", (width * len(self.pictures), height))
        for number, picture in enumerate(self.pictures):
            sheet.paste(picture, (number * width, 0))
        told, buffer = PngInfo(), BytesIO()
        told.add_text(_TOLD, json.dumps({"step": self.step, "prompts": self.prompts}))
        sheet.save(buffer, "PNG", pnginfo=told)
        path = folder / file_of(self.step, PICTURE)
        write_atomic(path, buffer.getvalue())
        return path


def read_strip(path: Path) -> Strip | None:
    """A strip that `Strip.save` wrote; None of any other file."""
    try:
        with Image.open(path, formats=("PNG",)) as sheet:
            told = json.loads(sheet.info[_TOLD])
            step, prompts = int(told["step"]), tuple(map(str, told["prompts"]))
            width = sheet.width // len(prompts)
            cells = [(number * width, 0, (number + 1) * width, sheet.height) for number in range(len(prompts))]
            return Strip(step, prompts, tuple(sheet.convert("RGB").crop(cell) for cell in cells))
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def strips_in(folder: Path, prompts: tuple[str, ...], last: int) -> list[Strip]:
    """What was drawn of the same prompts up to a step, by step; files that are none of ours do not count."""
    found = [strip for strip in map(read_strip, folder.glob(_FILES)) if strip is not None]
    return sorted((s for s in found if s.prompts == prompts and s.step <= last), key=lambda strip: strip.step)


def clear_strips(folder: Path) -> None:
    """Remove what an earlier run has drawn into a folder, and nothing else.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.glob(_FILES):
        if read_strip(path) is not None:
            path.unlink()


def grid_of(strips: Sequence[Strip], ink: str, paper: str) -> Image.Image:
    """All strips as one labelled picture: a row for each step, a column for each prompt.

    Args:
        strips: of the same prompts, at least one.
        ink, paper: colours of labels and of what is behind them.
    """
    rows = [(f"step {strip.step}", strip.pictures) for strip in spread(strips, MOST_ROWS)]
    return labelled_grid(rows, strips[0].prompts, ink, paper)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of some items (2 or more), evenly apart, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
