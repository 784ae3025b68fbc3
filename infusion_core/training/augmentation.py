"""Photos made smaller and turned on a canvas, for training that knows them by heart (APT, arXiv 2507.02687)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..errors import InfusionError
from ..noise import seeded

Canvas = Literal["black", "edge"]
VARIANTS = 12  # of each photo, made and encoded before training
_WHOLE = 0.999  # share of a place that must be the photo's
_LEAST_WEIGHT = 1e-6  # mean of a mask below which nothing of it is in the picture


@dataclass(frozen=True)
class Augmentation:
    """How a photo is shown otherwise. The defaults are the paper's.

    They suit models that have seen black borders and things of any size. One that has not, TinyWorld's, encodes
    such pictures as something else, and says in its folder what it can see.

    Attributes:
        zoom: a photo is made smaller by a factor uniform in [1, zoom].
        turn: and turned by up to so many degrees, both ways.
        canvas: what is around it then: ``black``, or its own ``edge``, drawn on. It has no part in the loss.

    Raises:
        InfusionError: a number is out of range.
    """

    zoom: float = 3.0
    turn: float = 15.0
    canvas: Canvas = "black"

    def __post_init__(self) -> None:
        if not 1 <= self.zoom <= 1000 or not 0 <= self.turn <= 180:
            raise InfusionError("photos are zoomed out by a factor of at least 1 and turned by 0 to 180 degrees")


PUBLISHED = Augmentation()


@dataclass(frozen=True)
class Variants:
    """Photos and what was made of them.

    Attributes:
        pictures: (N, 1 + variants, 3, H, W) in [0, 1]; the first of each is the photo itself.
        shown: where the photo is and the canvas is not, (N, 1 + variants, 1, H, W), 0 or 1.
        masks: of the photos, moved with them, in the same shape; None if they have none.
    """

    pictures: Tensor
    shown: Tensor
    masks: Tensor | None

    def weights(self, height: int, width: int) -> Tensor:
        """Loss weights of latents, (N, 1 + variants, 1, height, width), 1 on average over each.

        The masks, and nothing where a cell holds any of the canvas.
        """
        flat = self.shown.flatten(0, 1)
        weights = (F.adaptive_avg_pool2d(flat, (height, width)) > _WHOLE).to(flat)
        if self.masks is not None:
            weights = weights * F.adaptive_avg_pool2d(self.masks.flatten(0, 1), (height, width))
        weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=_LEAST_WEIGHT)
        return weights.reshape(*self.shown.shape[:-2], height, width)


def variants_of(
    photos: Tensor, count: int, seed: int, masks: Tensor | None = None, how: Augmentation = PUBLISHED
) -> Variants:
    """Each photo, and so many variants of it.

    Made before training, so that each is encoded once and no encoder is needed later.

    Args:
        photos: (N, 3, H, W) in [0, 1].
        count: variants of each.
        seed: of the random numbers.
        masks: weight of the loss over each photo, (N, 1, H, W); None for evenly.
        how: they differ from it.
    """
    generator = seeded(seed)
    layers = [photos, torch.ones_like(photos[:, :1]), *([] if masks is None else [masks.to(photos)])]
    whole = torch.cat(layers, 1)  # (N, 4 or 5, H, W): all of it moves alike
    made = [whole]
    for _ in range(count):
        drawn = torch.rand(2, len(photos), generator=generator)
        factors, angles = 1 + drawn[0] * (how.zoom - 1), (drawn[1] * 2 - 1) * how.turn
        rows = zip(whole, factors.tolist(), angles.tolist(), strict=True)
        placed = torch.cat([_placed(one[None], factor, angle) for one, factor, angle in rows])
        inside = (placed[:, 3:4] > _WHOLE).to(placed)
        pictures = placed[:, :3] * inside
        if how.canvas == "edge":
            rows = zip(photos, factors.tolist(), angles.tolist(), strict=True)
            pictures = torch.cat([_placed(one[None], factor, angle, "border") for one, factor, angle in rows])
        made.append(torch.cat([pictures, inside, placed[:, 4:]], 1))
    every = torch.stack(made, 1).clamp(0, 1)
    return Variants(every[:, :, :3], every[:, :, 3:4], None if masks is None else every[:, :, 4:])


def _placed(picture: Tensor, factor: float, angle: float, around: str = "zeros") -> Tensor:
    """A picture (1, C, H, W) made smaller and turned, in the middle of one of the same size."""
    height, width = picture.shape[2:]
    small = (max(1, round(height / factor)), max(1, round(width / factor)))
    shrunk = F.interpolate(picture, small, mode="bilinear", antialias=True)
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    # From places of the canvas to places of the small picture, each measured in its own half edges.
    matrix = torch.tensor(
        [
            [cos * width / small[1], sin * height / small[1], 0.0],
            [-sin * width / small[0], cos * height / small[0], 0.0],
        ]
    )
    grid = F.affine_grid(matrix[None].to(picture), [1, picture.shape[1], height, width], align_corners=False)
    return F.grid_sample(shrunk, grid, mode="bilinear", padding_mode=around, align_corners=False)


def chosen_variants(chance: Tensor, variants: int, generator: Generator) -> Tensor:
    """Which variant of its photo each sample shows, (B,); 0 is the photo itself.

    Args:
        chance: of a sample to show another one, (B,).
        variants: how many there are beside the photo.
        generator: random numbers.
    """
    other = torch.randint(1, variants + 1, chance.shape, generator=generator) if variants else torch.zeros_like(chance)
    return torch.where(torch.rand(chance.shape, generator=generator) < chance, other, 0).long()
