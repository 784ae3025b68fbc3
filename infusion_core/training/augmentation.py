"""Photos made smaller and turned on a black canvas, for training that knows them by heart (APT, arXiv 2507.02687)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..errors import InfusionError
from ..noise import seeded

MOST_ZOOM, MOST_TURN = 3.0, 15.0  # the paper's: photos are at least a third as large, turned by so many degrees


@dataclass(frozen=True)
class Variants:
    """Photos and what was made of them.

    Attributes:
        pictures: (N, 1 + variants, 3, H, W) in [0, 1]; the first of each is the photo itself.
        shown: where the photo is and the canvas is not, (N, 1 + variants, 1, H, W), 0 or 1.
    """

    pictures: Tensor
    shown: Tensor


def variants_of(photos: Tensor, count: int, seed: int, zoom: float = MOST_ZOOM, turn: float = MOST_TURN) -> Variants:
    """Each photo, and so many variants of it: zoomed out by a factor uniform in [1, zoom], turned by up to `turn`.

    Made before training, so that each is encoded once and no encoder is needed later.

    Args:
        photos: (N, 3, H, W) in [0, 1].
        count: variants of each.
        seed: of the random numbers.
        zoom: at least 1.
        turn: degrees, both ways.

    Raises:
        InfusionError: a number is out of range.
    """
    if zoom < 1 or not 0 <= turn <= 180 or not 0 <= count <= 1000:
        raise InfusionError("photos are zoomed out by a factor of at least 1 and turned by 0 to 180 degrees")
    generator = seeded(seed)
    whole = torch.ones_like(photos[:, :1])
    pictures, shown = [photos], [whole]
    for _ in range(count):
        drawn = torch.rand(2, len(photos), generator=generator)
        factors, angles = 1 + drawn[0] * (zoom - 1), (drawn[1] * 2 - 1) * turn
        rows = [
            _placed(torch.cat([photo, one])[None], float(factor), float(angle))
            for photo, one, factor, angle in zip(photos, whole, factors, angles, strict=True)
        ]
        placed = torch.cat(rows)
        inside = (placed[:, 3:] > 0.999).to(placed)
        pictures.append(placed[:, :3] * inside)
        shown.append(inside)
    return Variants(torch.stack(pictures, 1).clamp(0, 1), torch.stack(shown, 1))


def _placed(picture: Tensor, factor: float, angle: float) -> Tensor:
    """A picture (1, C, H, W) made smaller and turned, in the middle of an empty one of the same size."""
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
    return F.grid_sample(shrunk, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def shown_in_latents(shown: Tensor, height: int, width: int) -> Tensor:
    """Loss weights of latents, (..., 1, height, width), 1 on average: nothing where a cell holds any of the canvas.

    Args:
        shown: see `Variants`.
        height, width: of latents.
    """
    flat = shown.reshape(-1, *shown.shape[-3:])
    inside = (F.adaptive_avg_pool2d(flat, (height, width)) > 0.999).to(flat)
    weights = inside / inside.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1 / (height * width))
    return weights.reshape(*shown.shape[:-2], height, width)


def chosen_variants(chance: Tensor, variants: int, generator: Generator) -> Tensor:
    """Which variant of its photo each sample shows, (B,); 0 is the photo itself.

    Args:
        chance: of a sample to show another one, (B,).
        variants: how many there are beside the photo.
        generator: random numbers.
    """
    other = torch.randint(1, variants + 1, chance.shape, generator=generator) if variants else torch.zeros_like(chance)
    return torch.where(torch.rand(chance.shape, generator=generator) < chance, other, 0).long()
