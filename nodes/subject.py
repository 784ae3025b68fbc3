"""The square that is taken of a photo, and where the subject is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..infusion_core.errors import InfusionError

Box = tuple[float, float, float, float]  # left, top, right, bottom, px


@dataclass(frozen=True)
class Square:
    """What is taken of a photo.

    Attributes:
        pixels: (H, W, 3) in [0, 1]; H and W are the edge, or those of the whole photo.
        mask: (H, W), 1 where the subject is; all 1 where nobody said.
    """

    pixels: Tensor
    mask: Tensor


def square_of(name: str, photo: Image.Image, edge: int, mask: Tensor | None, box: Box | None, follow: bool) -> Square:
    """Take the middle square of a photo, or the smallest one round its subject that lies within the photo.

    Args:
        name: for errors.
        photo: RGB.
        edge: of the result, px.
        mask: (H, W) of the whole photo, 1 where the subject is.
        box: of the subject; counts more than the mask.
        follow: the square round the subject; the middle one where a photo has neither mask nor box.

    Raises:
        InfusionError: the box lies outside the photo.
    """
    drawn = None if mask is None else _picture(mask)
    inside = None if box is None else _inside(name, box, photo.size)
    if inside is None and drawn is not None and follow:
        inside = _bounds(drawn, photo.size)
    region = _square(photo.size, inside if follow else None)
    pixels = _tensor(photo.resize((edge, edge), Image.Resampling.LANCZOS, box=region, reducing_gap=3.0))
    if drawn is not None:
        scale = drawn.width / photo.width, drawn.height / photo.height
        part = drawn.resize((edge, edge), Image.Resampling.BILINEAR, box=_scaled(region, *scale))
        return Square(pixels, _tensor(part))
    return Square(pixels, torch.ones(edge, edge) if inside is None else _filled(inside, region, (edge, edge)))


def whole_of(name: str, photo: Image.Image, mask: Tensor | None, box: Box | None) -> Square:
    """All of a photo; arguments and errors as of `square_of`."""
    if box is not None:
        region = (0.0, 0.0, float(photo.width), float(photo.height))
        return Square(_tensor(photo), _filled(_inside(name, box, photo.size), region, photo.size))
    if mask is None:
        return Square(_tensor(photo), torch.ones(photo.height, photo.width))
    drawn = _picture(mask).resize(photo.size, Image.Resampling.BILINEAR)
    return Square(_tensor(photo), _tensor(drawn))


def to_mask(alpha: Image.Image) -> Tensor:
    """A greyscale picture as MASK (H, W)."""
    return _tensor(alpha)


def boxes_of(given: Any) -> list[Box | None] | None:
    """Boxes per photo of what the host's nodes give: one box, a box per photo, or a list of boxes per photo.

    Of several boxes in one photo the first counts, which detectors put the surest in.
    """
    if given is None:
        return None
    photos = [given] if isinstance(given, dict) else given
    firsts = [photo if isinstance(photo, dict) else next(iter(photo), None) for photo in photos]
    return [None if box is None else _corners(**{k: box[k] for k in ("x", "y", "width", "height")}) for box in firsts]


def _corners(x: float, y: float, width: float, height: float) -> Box:
    return (float(x), float(y), float(x) + float(width), float(y) + float(height))


def _inside(name: str, box: Box, size: tuple[int, int]) -> Box:
    """The part of a box that lies within a photo of a size."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    if left >= right or top >= bottom:
        raise InfusionError(
            f"the box of {name} lies outside the photo, which is {size[0]}x{size[1]} px; give x, y, width and height "
            "in px of the upright photo"
        )
    return left, top, right, bottom


def _bounds(mask: Image.Image, size: tuple[int, int]) -> Box | None:
    """The box of what a mask marks, in px of a photo of a size; None if it marks nothing."""
    found = mask.point(lambda value: 255 * (value > 127)).getbbox()
    return None if found is None else _scaled(found, size[0] / mask.width, size[1] / mask.height)


def _square(size: tuple[int, int], subject: Box | None) -> Box:
    """The smallest square round a subject, as far as it fits; without one, the largest in the middle."""
    left, top, right, bottom = subject or (0.0, 0.0, float(size[0]), float(size[1]))
    side = min(max(right - left, bottom - top), *size)
    x = min(max((left + right - side) / 2, 0), size[0] - side)
    y = min(max((top + bottom - side) / 2, 0), size[1] - side)
    return x, y, x + side, y + side


def _scaled(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _filled(box: Box, region: Box, size: tuple[int, int]) -> Tensor:
    """Where a box is in a region of a photo that is scaled to a size, (H, W)."""
    scale = size[0] / (region[2] - region[0])
    wide, high = (torch.arange(length) + 0.5 for length in size)
    across = (wide >= (box[0] - region[0]) * scale) & (wide < (box[2] - region[0]) * scale)
    down = (high >= (box[1] - region[1]) * scale) & (high < (box[3] - region[1]) * scale)
    return (down[:, None] & across[None]).float()


def _picture(mask: Tensor) -> Image.Image:
    """MASK (H, W) as a greyscale picture."""
    return Image.fromarray((mask.cpu().numpy() * 255).clip(0, 255).astype(np.uint8))


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
