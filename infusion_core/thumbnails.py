"""The picture in a concept file: a small PNG or JPEG as a data URL. Told by its first bytes; nothing is decoded."""

from __future__ import annotations

import base64
import binascii

MOST_BYTES = 256 * 2**10
LONGEST_EDGE = 1024  # px; a page decodes what it is handed, whatever it was packed into
_PNG, _PNG_WHOLE, _JPEG = b"\x89PNG", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_HEADER = 33  # bytes of the signature and the first chunk; the stub in the format's first reference file has fewer
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # markers among the frames' that are tables
_NO_SEGMENT = (0x01, *range(0xD0, 0xDB))  # markers after which no frame can come


def thumbnail_url(picture: bytes) -> str:
    """PNG or JPEG bytes as a data URL."""
    return f"data:image/{_kind(picture)};base64,{base64.b64encode(picture).decode()}"


def picture_of(url: str) -> bytes:
    """The picture in a data URL.

    Raises:
        ValueError: it is not a small PNG or JPEG.
    """
    head, _, encoded = url.partition(";base64,")
    if head not in ("data:image/png", "data:image/jpeg"):
        raise ValueError("the thumbnail is not a PNG or JPEG data URL")
    try:
        picture = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the thumbnail is damaged") from error
    check_picture(picture)
    if head != f"data:image/{_kind(picture)}":
        raise ValueError("the thumbnail is another kind of picture than it says")
    return picture


def check_picture(picture: bytes) -> None:
    """Refuse what is not a small PNG or JPEG.

    Raises:
        ValueError: it is something else, or too large.
    """
    if len(picture) > MOST_BYTES:
        raise ValueError(f"the thumbnail has more than {MOST_BYTES} bytes")
    edges = _png_edges(picture) if picture.startswith(_PNG) else _jpeg_edges(picture)
    if edges is None:
        raise ValueError("the thumbnail is not a PNG or JPEG picture")
    if max(edges) > LONGEST_EDGE:
        raise ValueError(f"the thumbnail is larger than {LONGEST_EDGE} x {LONGEST_EDGE} px")


def _kind(picture: bytes) -> str:
    return "png" if picture.startswith(_PNG) else "jpeg"


def _png_edges(picture: bytes) -> tuple[int, int] | None:
    """Width and height, or None if it is no PNG; a stub has none to speak of."""
    if len(picture) < _PNG_HEADER:
        return 0, 0
    if not picture.startswith(_PNG_WHOLE) or picture[12:16] != b"IHDR":
        return None
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


def _jpeg_edges(picture: bytes) -> tuple[int, int] | None:
    """Width and height from the first frame, or None if it is no JPEG."""
    at = 2 if picture.startswith(_JPEG) else len(picture)
    while at + 9 <= len(picture) and picture[at] == 0xFF:
        marker, length = picture[at + 1], int.from_bytes(picture[at + 2 : at + 4], "big")
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return int.from_bytes(picture[at + 7 : at + 9], "big"), int.from_bytes(picture[at + 5 : at + 7], "big")
        if marker in _NO_SEGMENT or length < 2:
            return None
        at += 2 + length
    return None
