"""The user's photos, whatever they are, as square RGB pictures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InfusionError
from ..photos import SUFFIXES, read_photo

THUMBNAIL_PX = 96


def load_photos(folder: Path) -> list[Image.Image]:
    """Every photo of a folder (or the one file), by name, as `read_photo` reads it.

    Raises:
        InfusionError: the folder is missing, holds no photo, or a photo cannot be read.
    """
    if not folder.exists():
        raise InfusionError(f"there is no folder {folder}; give the folder that holds your photos (--images)")
    paths = [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InfusionError(f"no photos in {folder}; put JPEG, PNG, WebP, BMP or GIF files there")
    return [_load(p) for p in paths]


def square(photo: Image.Image, size: int) -> Image.Image:
    """The largest centred square of a photo, `size` px."""
    return ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS)


def to_tensor(photos: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (N, 3, H, W) in [-1, 1]."""
    pixels = np.stack([np.asarray(p.convert("RGB"), dtype=np.float32) for p in photos])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1] as pictures."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def thumbnail(photo: Image.Image) -> bytes:
    """A small JPEG of a photo, for the concept file."""
    small = square(photo, THUMBNAIL_PX)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _load(path: Path) -> Image.Image:
    try:
        return read_photo(path)
    except InfusionError as error:
        raise InfusionError(f"{path} is not a readable picture ({error}); remove it or save it again") from error
