"""IMAGE and MASK as the nodes need them."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..infusion_core.errors import InfusionError

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
    if resolution % 8:
        raise InfusionError(f"the resolution must be a multiple of 8, got {resolution}")
    if images.shape[-1] == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + (1 - alpha)
    scaled = comfy.utils.common_upscale(images.movedim(-1, 1), resolution, resolution, "lanczos", "center")
    return scaled.movedim(1, -1)  # type: ignore[no-any-return]


def squares_of(photos: Sequence[Tensor], resolution: int) -> Tensor:
    """The centre squares of IMAGEs of any sizes, (N, resolution, resolution, 3).

    Raises:
        InfusionError: the resolution is not a multiple of 8.
    """
    return torch.cat([square(images, resolution) for images in photos])


def mask_of(masks: Sequence[Tensor], latents: Tensor, resolution: int) -> Tensor:
    """MASKs (M, H, W) as loss weights (N, 1, h, w) in the latents' geometry; one mask may stand for all photos.

    Raises:
        InfusionError: another number of masks than photos.
    """
    cut = torch.cat(
        [comfy.utils.common_upscale(mask[:, None], resolution, resolution, "bilinear", "center") for mask in masks]
    )
    if len(cut) not in (1, len(latents)):
        raise InfusionError(f"{len(cut)} masks for {len(latents)} photos; give one mask per photo, or one for all")
    small = F.adaptive_avg_pool2d(cut, (latents.shape[-2], latents.shape[-1])).clone().to(latents)
    return small.expand(len(latents), -1, -1, -1)
