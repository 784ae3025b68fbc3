"""Picture files without what only describes them: a decoder sees a picture, and no comment, preview or later frame.

What a stranger wrote round the picture is read here, by its lengths and within bounds, whatever Pillow's version:
decoders have read such parts without end (entries of EXIF that overlap, a million chunks, thousands of scans).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InfusionError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # no other decoder ever sees a user's file
HEAD = 32  # bytes that tell what a file is
MOST_PARTS = 50_000  # segments, chunks or blocks of one file; the largest photos have a few thousand
MOST_SCANS = 50  # of a progressive JPEG, usually 10; each goes over the whole picture
MOST_PROFILE = 4 << 20  # bytes of a colour profile; those of presses have 3 MB
_OURS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
)
_OTHERS = (
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftyphe", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC or AVIF picture"),
    (4, b"ftypmsf1", "a HEIC or AVIF picture"),
    (4, b"ftypcrx", "a raw photo"),
    (4, b"ftyp", "a film"),
    (0, b"II*\0", "a TIFF picture or raw photo"),
    (0, b"MM\0*", "a TIFF picture or raw photo"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
)


@dataclass
class PictureFile:
    """What of a file a decoder needs, and what was said beside it.

    Attributes:
        format: one of `FORMATS`.
        data: the file, without what is not needed.
        tags: EXIF, as it stands in the file.
        xmp: the other place where an orientation is told.
        profile: of its colours (ICC); empty if there is none.
        at_once: whether a decoder holds all of it in full size, however small the picture is wanted (progressive JPEG).
    """

    format: str
    data: bytes = b""
    tags: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""
    at_once: bool = False

    @property
    def orientation(self) -> int:
        """How the camera was held, 1 (upright) to 8."""
        told = _orientation_of(self.tags.removeprefix(b"Exif\0\0"))
        if told is None:
            found = re.search(rb'tiff:Orientation(?:="|>)(\d)', self.xmp)
            told = int(found[1]) if found else 1
        return told if 1 <= told <= 8 else 1


def format_of(head: bytes) -> str:
    """The format of a file that begins so, whatever its name says.

    Raises:
        InfusionError: it is none of `FORMATS`: what it is, as far as that is known.
    """
    for at, mark, name in _OURS:
        if head.startswith(mark, at):
            return name
    if not head:
        raise InfusionError("an empty file")
    for at, mark, name in _OTHERS:
        if head.startswith(mark, at):
            raise InfusionError(f"{name}; save it as JPEG")
    raise InfusionError("not a JPEG, PNG, WebP, BMP or GIF picture")


def picture_file(data: bytes) -> PictureFile:
    """Read a whole file as far as needed to leave out what is no picture.

    Raises:
        InfusionError: it is none of `FORMATS`, damaged, or made to keep a decoder busy.
    """
    kind = format_of(data[:HEAD])
    try:
        file = _READERS[kind](data)
    except (struct.error, IndexError):
        raise InfusionError("damaged: it is cut off") from None
    if len(file.profile) > MOST_PROFILE:
        file.profile = b""
    return file


class _Parts:
    """Counts the parts of a file."""

    def __init__(self) -> None:
        self.count = 0

    def one_more(self) -> None:
        """Raises InfusionError: no photo has so many."""
        self.count += 1
        if self.count > MOST_PARTS:
            raise InfusionError(f"more than {MOST_PARTS} parts in one file; save it again")


# -- JPEG -----------------------------------------------------------------------------------------------------------

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # after the data of a scan
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BASELINE = (0xC0, 0xC1, 0xC9)
_SAID = {*range(0xE1, 0xF0), 0xFE} - {0xEE}  # APP1 to APP15 and comments; APP14 tells the colours


def _jpeg(data: bytes) -> PictureFile:
    file, parts, scans, at = PictureFile("JPEG"), _Parts(), 0, 2
    keep, profile, components = [data[:2]], dict[int, bytes](), 0
    while at < len(data):
        parts.one_more()
        at = _at_marker(data, at)
        marker = data[at + 1]
        if marker == 0xD9:
            keep.append(data[at : at + 2])
            break
        end = at + 2 if marker in _ALONE else at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        body = data[at + 4 : end]
        if marker in _FRAMES:
            components, file.at_once = body[5], file.at_once or marker not in _BASELINE
        if marker == 0xDA:
            scans += 1
            file.at_once = file.at_once or body[0] < components
            found = _NEXT_MARKER.search(data, end)
            end = found.start() if found else len(data)
        if marker in _SAID:
            _hear(file, profile, marker, body)
        else:
            keep.append(data[at:end])
        at = end
    if scans > MOST_SCANS:
        raise InfusionError(f"{scans} scans in one JPEG; save it again")
    if sorted(profile) == list(range(1, len(profile) + 1)):
        file.profile = b"".join(profile[number] for number in sorted(profile))
    file.data = b"".join(keep)
    return file


def _at_marker(data: bytes, at: int) -> int:
    """The place of the next marker, whatever lies before it.

    Raises:
        InfusionError: there is none.
    """
    found = _NEXT_MARKER.search(data, at)
    if found is None:
        raise InfusionError("damaged: it is cut off")
    return found.start()


def _hear(file: PictureFile, profile: dict[int, bytes], marker: int, body: bytes) -> None:
    """Take from a segment what is said of orientation and colours; of what is said twice the first counts."""
    if marker == 0xE1 and body.startswith(b"Exif\0\0"):
        file.tags = file.tags or body
    elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
        file.xmp = file.xmp or body
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
        profile.setdefault(body[12], body[14:])


# -- PNG ------------------------------------------------------------------------------------------------------------

_DRAWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_RAW_TAGS = b"Raw profile type exif"  # ImageMagick's way, in hexadecimal below three lines


def _png(data: bytes) -> PictureFile:
    file, parts, at = PictureFile("PNG"), _Parts(), 8
    keep, whole = [memoryview(data)[:8]], memoryview(data)
    while at < len(data):
        parts.one_more()
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = slice(at + 8, at + 8 + length), at + 12 + length
        if kind in _DRAWN:
            keep.append(whole[at:end])
        elif kind == b"eXIf":
            file.tags = data[body]
        elif kind == b"iCCP":
            file.profile = _inflated(data[body].partition(b"\0")[2][1:])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _read_text(file, kind, data[body])
        if kind == b"IEND":
            break
        at = end
    file.data = b"".join(keep)
    return file


def _read_text(file: PictureFile, kind: bytes, body: bytes) -> None:
    keyword, _, text = body.partition(b"\0")
    if keyword == _RAW_TAGS and kind != b"iTXt":
        lines = (text if kind == b"tEXt" else _inflated(text[1:])).split(b"\n")
        digits = re.sub(rb"[^0-9a-fA-F]", b"", b"".join(lines[3:]))
        file.tags = file.tags or bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    elif keyword == b"XML:com.adobe.xmp" and kind == b"iTXt":
        content = text[2:].split(b"\0", 2)[-1]
        file.xmp = file.xmp or (_inflated(content) if text[:1] == b"\1" else content)


def _inflated(packed: bytes) -> bytes:
    """What was compressed, no more than a colour profile may have; nothing if it is damaged or longer."""
    try:
        text = zlib.decompressobj().decompress(packed, MOST_PROFILE + 1)
    except zlib.error:
        return b""
    return text if len(text) <= MOST_PROFILE else b""


# -- GIF, WebP, BMP -------------------------------------------------------------------------------------------------


def _gif(data: bytes) -> PictureFile:
    """The first picture, and which of its colours is transparent."""
    parts, at, control = _Parts(), 13 + _table_length(data[10]), b""
    start = data[:at]
    while data[at] != 0x2C:
        parts.one_more()
        if data[at] == 0x3B:
            raise InfusionError("damaged: there is no picture in it")
        if data[at] != 0x21:
            at += 1
            continue
        if data[at + 1 : at + 3] == b"\xf9\x04":
            control = b"!\xf9\x04" + bytes([data[at + 3] & 1, 0, 0, data[at + 6], 0])
        at = _after_blocks(data, at + 2)
    end = _after_blocks(data, at + 11 + _table_length(data[at + 9]))
    return PictureFile("GIF", start + control + data[at:end] + b";")


def _table_length(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Where a row of blocks is over; the end of the file if it is cut off, which the decoder tells."""
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return min(at + 1, len(data))


def _webp(data: bytes) -> PictureFile:
    """As it is: its decoder looks at the first picture and at nothing else."""
    said, parts, at = dict[bytes, bytes](), _Parts(), 12
    while at + 8 <= len(data):
        parts.one_more()
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind in (b"EXIF", b"XMP ", b"ICCP"):
            said.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return PictureFile("WEBP", data, said.get(b"EXIF", b""), said.get(b"XMP ", b""), said.get(b"ICCP", b""))


def _bmp(data: bytes) -> PictureFile:
    """As it is, unless a run-length decoder would be needed: that is Python, a turn per byte."""
    (header,) = struct.unpack_from("<I", data, 14)
    if header >= 40 and struct.unpack_from("<I", data, 30)[0] in (1, 2):
        raise InfusionError("a BMP with run-length compression; save it as PNG")
    return PictureFile("BMP", data)


_READERS: dict[str, Callable[[bytes], PictureFile]] = {
    "JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WEBP": _webp, "BMP": _bmp,
}  # fmt: skip


def _orientation_of(tags: bytes) -> int | None:
    """What EXIF says of how the camera was held; None where it says nothing that can be read."""
    order = {b"II": "<", b"MM": ">"}.get(tags[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tags, 4)
        (count,) = struct.unpack_from(order + "H", tags, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tags, at)
            if tag == 0x0112 and kind in (3, 4):
                return int(struct.unpack_from(order + ("H" if kind == 3 else "I"), tags, at + 8)[0])
    except struct.error:
        pass
    return None
