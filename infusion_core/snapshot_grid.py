"""Snapshots of a run side by side: each at every strength, saying every prompt, as one labelled picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from .concepts import LARGEST_SCALE
from .errors import InfusionError
from .grid import labelled_grid

MOST_CELLS = 400  # pictures of one grid
S = TypeVar("S")
A = TypeVar("A")


@dataclass(frozen=True)
class GridPlan:
    """What a grid shows.

    Attributes:
        strengths: at which every snapshot is drawn.
        prompts: that every snapshot draws.

    Raises:
        InfusionError: none of either, or a strength that is no number.
    """

    strengths: Sequence[float]
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if not self.prompts or not self.strengths:
            raise InfusionError("a grid needs at least one prompt and one strength; give them")
        for strength in self.strengths:
            if not abs(strength) <= LARGEST_SCALE:
                raise InfusionError(f"a strength must be a number up to {LARGEST_SCALE:g}, got {strength:g}")

    def cells(self, snapshots: int) -> int:
        """How many pictures that many snapshots make.

        Raises:
            InfusionError: too many.
        """
        count = snapshots * len(self.strengths) * len(self.prompts)
        if count > MOST_CELLS:
            raise InfusionError(f"{count} pictures are too many for one grid; choose up to {MOST_CELLS}")
        return count

    def drawn(
        self, snapshots: Sequence[tuple[str, S]], load: Callable[[S, float], A], draw: Callable[[A, str], Image.Image]
    ) -> Image.Image:
        """The grid: a row for each snapshot at each strength, a column for each prompt.

        Args:
            snapshots: label and what `load` knows each by.
            load: what draws, by a snapshot at a strength; once for each row.
            draw: a picture by that, of a prompt.
        """
        self.cells(len(snapshots))
        rows = []
        for label, snapshot in snapshots:
            for strength in self.strengths:
                artist = load(snapshot, strength)
                rows.append((self._label(label, strength), [draw(artist, prompt) for prompt in self.prompts]))
        return labelled_grid(rows, self.prompts)

    def _label(self, snapshot: str, strength: float) -> str:
        """Of a row; the strength is told where it is not always 1."""
        return snapshot if list(self.strengths) == [1] else f"{snapshot}, strength {strength:g}"
