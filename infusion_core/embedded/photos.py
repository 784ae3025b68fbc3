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
from ..photos import MOST_FILES, Skipped, begins_as_photo, list_photos, read_photos
from ..training.shapes import Size

THUMBNAIL_PX = 96
TOLD = 5  # skipped files that an error names


def files_in(folder: Path, given: str = "--images", most: int = MOST_FILES) -> list[Path]:
    """What is in a folder (or the one file), in natural order.

    Args:
        folder: of photos.
        given: the option that names it.
        most: files that may be there.

    Raises:
        InfusionError: the folder is missing, or holds too much.
    """
    try:
        return list_photos(folder, most)
    except InfusionError as error:
        raise InfusionError(f"{folder}: {error}; give the folder that holds your photos ({given})") from None


def find_photos(folder: Path, given: str = "--images", most: int = MOST_FILES) -> list[Path]:
    """As `files_in`, with at least one that begins like a photo.

    Raises:
        InfusionError: the folder is missing, or holds no photo or too much.
    """
    paths = files_in(folder, given, most)
    if not any(begins_as_photo(path) for path in paths):
        skipped: list[Skipped] = []
        list(read_photos(paths, skipped))
        raise InfusionError(none_in(folder, skipped))
    return paths


def load_photos(
    folder: Path, edge: int | None = None, skipped: list[Skipped] | None = None, given: str = "--images",
    most: int = MOST_FILES,
) -> list[Image.Image]:  # fmt: skip
    """Every photo of a folder (or the one file), in natural order.

    Args:
        folder: of the photos.
        edge: px of the squares that are wanted: of larger photos nothing else is kept; without it they are whole.
        skipped: grows by the files that cannot be used, or hold what another one holds, with the reason.
        given, most: see `files_in`.

    Raises:
        InfusionError: the folder is missing, holds too much, or no photo in it can be used.
    """
    skipped = [] if skipped is None else skipped
    photos = read_photos(find_photos(folder, given, most), skipped, None if edge is None else 2 * edge)
    taken = [photo.picture if edge is None else no_larger(photo.picture, edge) for photo in photos]
    if not taken:
        raise InfusionError(none_in(folder, skipped))
    return taken


def no_larger(photo: Image.Image, edge: int) -> Image.Image:
    """A photo of up to twice the edge as it is, the middle square of a larger one."""
    return photo if max(photo.size) <= 2 * edge else square(photo, edge)


def none_in(folder: Path, skipped: Sequence[Skipped]) -> str:
    """What is wrong with a folder without a photo that can be used."""
    told = f" ({'; '.join(map(str, skipped[:TOLD]))})" if skipped else ""
    return f"no photos in {folder} can be used{told}; put JPEG, PNG, WebP, BMP or GIF files there"


def square(photo: Image.Image, size: int) -> Image.Image:
    """The largest centred square of a photo, `size` px."""
    return fitted(photo, (size, size))


def fitted(photo: Image.Image, size: Size) -> Image.Image:
    """The largest centred part of a photo that has the shape of a size, scaled to it."""
    return ImageOps.fit(photo, size, Image.Resampling.LANCZOS)


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
