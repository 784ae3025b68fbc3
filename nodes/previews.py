"""Pictures of several prompts at some steps of a run: a strip in the node while it trains, all of them as an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ..infusion_core.captions import preview_prompts
from ..infusion_core.grid import labelled_grid
from ..infusion_core.previews import Strip, grid_of
from .pictures import first_of, image_of
from .plot import INK, PAPER, card
from .snapshots import RunFolder
from .widgets import lines_of

DrawAll = Callable[[Sequence[str]], Sequence[Tensor]]  # prompts to IMAGEs, picture i always from the same noise


@dataclass
class Previews:
    """What a run draws.

    Attributes:
        prompts: filled.
        draw: draws them with what has been learned so far; None for no pictures.
        strips: what was drawn, by step.
    """

    prompts: tuple[str, ...]
    draw: DrawAll | None
    strips: list[Strip] = field(default_factory=list, init=False)

    def take(self, step: int, folder: RunFolder) -> Image.Image | None:
        """Draw after a step, and keep the pictures beside its snapshot; the labelled strip, None for no pictures."""
        if self.draw is None:
            return None
        strip = Strip(step, self.prompts, tuple(map(first_of, self.draw(self.prompts))))
        folder.keep_strip(strip)
        self.strips.append(strip.small)
        return labelled_grid([("", strip.pictures)], strip.prompts, INK, PAPER)

    def restore(self, step: int, folder: RunFolder) -> None:
        """Take back what a run had drawn up to a step."""
        self.strips = [] if self.draw is None else [strip.small for strip in folder.strips(self.prompts, step)]

    @property
    def output(self) -> torch.Tensor:
        """IMAGE (1, H, W, 3) of all strips: a row for each step, a column for each prompt."""
        if not self.strips:
            return image_of(card("no previews were drawn (preview_every is 0)"))
        return image_of(grid_of(self.strips, INK, PAPER))


def prompts_of(text: str, phrase: str) -> tuple[str, ...]:
    """The prompts in a text widget, a line each with ``{}`` for the subject; of none a neutral one.

    Raises:
        InfusionError: a line without ``{}``, or too many.
    """
    return preview_prompts(lines_of(text), phrase)
