"""The colours of a decoded photo: any mode and profile as sRGB, and what of it is transparent."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

OPAQUE = 250  # alpha from which on a place is seen; a photo that has no less anywhere is not transparent
_STRIP = 1 << 22  # pixels whose colours are seen to at once


def in_rgb(photo: Image.Image, profile: bytes, shortest: int | None) -> tuple[Image.Image, Image.Image | None]:
    """A decoded photo in sRGB over white and its alpha, smaller where it is large; by strips, for want of memory."""
    factor = max(1, min(photo.size) // shortest) if shortest else 1
    width, height = photo.size
    brightest = _brightest(photo)
    out = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    alpha: Image.Image | None = None
    rows = max(1, _STRIP // (width * factor)) * factor
    for top in range(0, height, rows):
        strip = _plain(photo.crop((0, top, width, min(top + rows, height))), brightest)
        if factor > 1:
            strip = strip.reduce(factor)
        if strip.mode == "RGBA":
            alpha = alpha or Image.new("L", out.size, 255)
            alpha.paste(strip.getchannel("A"), (0, top // factor))
        out.paste(_over_white(_to_srgb(strip, profile)), (0, top // factor))
    return out, None if alpha is None or alpha.getextrema()[0] >= OPAQUE else alpha  # type: ignore[operator]


def _brightest(photo: Image.Image) -> float:
    """The largest value of a greyscale with more than 8 bits; 255 of all else."""
    if not (photo.mode.startswith("I") or photo.mode == "F"):
        return 255.0
    return max(255.0, float(photo.getextrema()[1]))  # type: ignore[arg-type]


def _plain(photo: Image.Image, brightest: float) -> Image.Image:
    """L, RGB, RGBA or CMYK; 16-bit greyscale with its whole range kept."""
    if photo.mode.startswith("I") or photo.mode == "F":
        depth = np.asarray(photo, dtype=np.float32)
        return Image.fromarray((depth * (255 / brightest)).astype(np.uint8))
    if "A" in photo.getbands() or "transparency" in photo.info:
        return photo.convert("RGBA")
    return photo if photo.mode in ("L", "RGB", "CMYK") else photo.convert("RGB")


def _to_srgb(photo: Image.Image, profile: bytes) -> Image.Image:
    """The colours that a profile means; as they are where there is none, or one that does not fit."""
    if not profile:
        return photo
    mode = "RGBA" if photo.mode == "RGBA" else "RGB"
    try:
        turned = ImageCms.profileToProfile(photo, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode)
    except Exception:  # a profile breaks in many ways, none of which is the photo's fault
        return photo
    return photo if turned is None else turned


def _over_white(photo: Image.Image) -> Image.Image:
    if photo.mode != "RGBA":
        return photo.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
