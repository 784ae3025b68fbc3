"""IMAGE and MASK as the nodes need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from operator import itemgetter

import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..infusion_core.errors import InfusionError
from ..infusion_core.training.shapes import Size, grouped

THUMBNAIL_PX = 96


def first_of(images: Tensor) -> Image.Image:
    """The first picture of IMAGE (B, H, W, C)."""
    pixels = (images[0, :, :, :3].cpu().numpy() * 255).round().clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def image_of(picture: Image.Image) -> Tensor:
    """A picture as IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def thumbnail_of(images: Tensor) -> bytes:
    """A small JPEG of the first picture of IMAGE (B, H, W, C)."""
    small = ImageOps.fit(first_of(images), (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def square(images: Tensor, resolution: int) -> Tensor:
    """The centre square of IMAGE (B, H, W, C), alpha over white, as (B, resolution, resolution, 3).

    Raises:
        InfusionError: the resolution is not a multiple of 8.
    """
    _check(resolution)
    return _fitted(images, (resolution, resolution))


def squares_of(photos: Sequence[Tensor], resolution: int) -> Tensor:
    """The centre squares of IMAGEs of any sizes, (N, resolution, resolution, 3).

    Raises:
        InfusionError: the resolution is not a multiple of 8.
    """
    return torch.cat([square(images, resolution) for images in photos])


@dataclass(frozen=True)
class Group:
    """Photos of one size.

    Attributes:
        numbers: of each among all photos.
        pictures: (N, H, W, 3).
    """

    numbers: Sequence[int]
    pictures: Tensor


def groups_of(photos: Sequence[Tensor], resolution: int, step: int, keep: bool) -> list[Group]:
    """IMAGEs of any sizes as training takes them.

    Args:
        photos: one or several in each.
        resolution: edge of the squares.
        step: px that other edges are a multiple of.
        keep: photos keep their shape, at about the size of the square; else their centre squares, one group.

    Raises:
        InfusionError: the resolution is not a multiple of 8.
    """
    if not keep:
        squares = squares_of(photos, resolution)
        return [Group(range(len(squares)), squares)]
    _check(resolution)
    whole = [photo[None] for images in photos for photo in images]
    sizes = grouped([(photo.shape[2], photo.shape[1]) for photo in whole], resolution, step)
    return [
        Group(numbers, torch.cat([_fitted(whole[number], size) for number in numbers]))
        for size, numbers in sizes.items()
    ]


def in_order(groups: Sequence[Group]) -> list[Tensor]:
    """All photos (H, W, 3) by number."""
    pairs = (pair for group in groups for pair in zip(group.numbers, group.pictures, strict=True))
    return [picture for _, picture in sorted(pairs, key=itemgetter(0))]


def masks_of(masks: Sequence[Tensor] | None, photos: int) -> list[Tensor] | None:
    """A MASK (1, H, W) for each photo; one may stand for all.

    Raises:
        InfusionError: another number of masks than photos.
    """
    if masks is None:
        return None
    each = [mask[None] for several in masks for mask in several]
    if len(each) not in (1, photos):
        raise InfusionError(f"{len(each)} masks for {photos} photos; give one mask per photo, or one for all")
    return each * photos if len(each) == 1 else each


def mask_of(masks: Sequence[Tensor], latents: Tensor, size: Size) -> Tensor:
    """MASKs (1, H, W), one for each photo, as loss weights (N, 1, h, w) in the latents' geometry.

    Args:
        masks: of whole photos.
        latents: of the photos, (N, C, h, w).
        size: that the photos were scaled to.
    """
    cut = torch.cat([comfy.utils.common_upscale(mask[:, None], *size, "bilinear", "center") for mask in masks])
    return F.adaptive_avg_pool2d(cut, (latents.shape[-2], latents.shape[-1])).clone().to(latents)


def _check(resolution: int) -> None:
    if resolution % 8:
        raise InfusionError(f"the resolution must be a multiple of 8, got {resolution}")


def _fitted(images: Tensor, size: Size) -> Tensor:
    """The largest centred part of IMAGE (B, H, W, C) that has the shape of a size, alpha over white, scaled to it."""
    if images.shape[-1] == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + (1 - alpha)
    scaled = comfy.utils.common_upscale(images.movedim(-1, 1), *size, "lanczos", "center")
    return scaled.movedim(1, -1)  # type: ignore[no-any-return]
