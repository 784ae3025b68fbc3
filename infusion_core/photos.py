"""Photo files as RGB pictures, the same in every host. The one module of the core that needs Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from .errors import InfusionError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no other decoder ever sees a user's file
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what decoders raise


def read_photo(path: Path, shortest: int | None = None) -> Image.Image:
    """A photo as RGB: turned as its EXIF says, in sRGB, alpha over white; of an animation the first picture.

    Args:
        path: the file.
        shortest: decode no more of a large JPEG than leaves at least this many px on its shorter edge.

    Raises:
        InfusionError: why it cannot be read, without its name.
    """
    try:
        with _whole_files_only(), Image.open(path, formats=FORMATS) as file:
            if shortest is not None:
                file.draft("RGB", (shortest, shortest))
            file.load()
            photo = ImageOps.exif_transpose(file)
    except UnidentifiedImageError:
        raise InfusionError("not a JPEG, PNG, WebP, BMP or GIF picture") from None
    except FileNotFoundError:
        raise InfusionError("there is no such file") from None
    except _DAMAGE as error:
        raise InfusionError(f"damaged: {error}") from error
    return _over_white(_to_srgb(_to_8_bit(photo)))


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Some node packs tell Pillow to fill truncated files with gray, for the whole process."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_8_bit(photo: Image.Image) -> Image.Image:
    """16-bit greyscale with its whole range kept."""
    if not (photo.mode.startswith("I") or photo.mode == "F"):
        return photo
    depth = np.asarray(photo, dtype=np.float32)
    return Image.fromarray((depth * (255 / max(255.0, float(depth.max())))).astype(np.uint8))


def _to_srgb(photo: Image.Image) -> Image.Image:
    """The colours that the photo's profile means; as they are where there is none, or one that does not fit."""
    profile = photo.info.get("icc_profile")
    if not profile:
        return photo
    if photo.mode not in ("RGB", "RGBA", "CMYK", "L"):
        photo = photo.convert("RGBA" if _has_alpha(photo) else "RGB")
    mode = photo.mode if photo.mode == "RGBA" else "RGB"
    try:
        turned = ImageCms.profileToProfile(photo, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return photo
    return photo if turned is None else turned


def _over_white(photo: Image.Image) -> Image.Image:
    if not _has_alpha(photo):
        return photo.convert("RGB")
    rgba = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _has_alpha(photo: Image.Image) -> bool:
    return "A" in photo.getbands() or "transparency" in photo.info
