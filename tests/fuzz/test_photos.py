"""Whatever bytes lie in a file called a photo: an RGB picture of the asked size, or one error of one printable line."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from infusion_core.errors import LONGEST_MESSAGE, InfusionError
from infusion_core.photos import MOST_AT_ONCE, begins_as_photo, read_photo

from .bounds import within

MOST_MB = 9 * MOST_AT_ONCE / 1e6  # of one photo: decoded and in RGB, 4 bytes a pixel each, and what it is made of
MOST_SECONDS = 10
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".heic", ".txt", "", ".JPG")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "P", "1"),
    "GIF": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "CMYK"),
    "EPS": ("RGB", "L"),
    "PPM": ("RGB",),
    "TGA": ("RGB",),
}


def picture(chance: random.Random, mode: str) -> Image.Image:
    """A small picture of noise."""
    size = chance.randint(1, 40), chance.randint(1, 40)
    if mode == "I;16":
        return Image.frombytes("I;16", size, chance.randbytes(2 * size[0] * size[1]))
    noise = Image.frombytes("RGBA", size, chance.randbytes(4 * size[0] * size[1]))
    if mode == "RGBA":
        return noise
    return noise.convert("RGB").quantize(16) if mode == "P" else noise.convert("RGB").convert(mode)


def exif(chance: random.Random) -> bytes:
    """EXIF whose entries point anywhere, more of them than there are, or an orientation."""
    order, word = chance.choice((("<", b"II"), (">", b"MM")))
    count = chance.choice((1, 2, 5, 300, 5000))
    entries = b"".join(
        struct.pack(
            order + "HHII", tag, chance.randint(0, 13), chance.choice((1, 60_000, 2**32 - 1)), chance.randint(0, 99)
        )
        for tag in chance.sample(range(1, 65535), count)
    )
    turned = struct.pack(order + "HHIHH", 0x0112, 3, 1, chance.choice((*range(10), 65535)), 0)
    told = chance.choice((count + 1, 65535))
    start = chance.choice((8, 8, 8, 2**32 - 1))
    return word + struct.pack(order + "HIH", 42, start, told) + turned + entries[:50_000]


def whole_file(chance: random.Random) -> bytes:
    """A file as Pillow writes it, with this and that beside the picture."""
    kind = chance.choice(tuple(MODES))
    first = picture(chance, chance.choice(MODES[kind]))
    options: dict[str, object] = {}
    if kind in ("JPEG", "PNG", "WEBP"):
        options["exif"] = exif(chance) if chance.random() < 0.5 else b""
        options["icc_profile"] = chance.choice((None, SRGB, flipped(chance, SRGB), chance.randbytes(200)))
    if kind == "JPEG":
        options |= {"progressive": chance.random() < 0.5, "comment": chance.randbytes(chance.choice((0, 9, 60_000)))}
    if kind in ("PNG", "WEBP", "GIF") and chance.random() < 0.3:
        options |= {
            "save_all": True,
            "append_images": [picture(chance, first.mode).resize(first.size) for _ in range(3)],
        }
    buffer = BytesIO()
    try:
        first.save(buffer, kind, **{name: value for name, value in options.items() if value})
    except (OSError, ValueError):  # older writers cannot do all of that
        buffer = BytesIO()
        first.save(buffer, kind)
    return buffer.getvalue()


def flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def doubled(chance: random.Random, data: bytes) -> bytes:
    """A part of the file again, up to thousands of times."""
    at, length = chance.randrange(len(data)), chance.choice((1, 4, 12, 60, 1000))
    part = data[at : at + length]
    return data[:at] + part * chance.choice((1, 2, 200, 100_000 // length)) + data[at:]


def grown(chance: random.Random, data: bytes) -> bytes:
    """A header that promises a huge picture."""
    width, height = (chance.choice((0, 1, 9_999, 30_000, 65_535, 2**31 - 1, 2**32 - 1)) for _ in range(2))
    if data.startswith(b"\x89PNG"):
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    if data.startswith(b"GIF"):
        return data[:6] + struct.pack("<HH", width % 65536, height % 65536) + data[10:]
    if data.startswith(b"\xff\xd8"):
        found = re.search(rb"\xff[\xc0-\xc2]\0.\x08", data, re.DOTALL)
        at = found.end() if found else 0
        return data[:at] + struct.pack(">HH", height % 65536, width % 65536) + data[at + 4 :] if found else data
    return data[:24] + struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3] + data[30:]  # WebP with VP8X


def chunked(chance: random.Random, data: bytes) -> bytes:
    """A PNG with a chunk more, whose checksum is right."""
    if not data.startswith(b"\x89PNG"):
        return flipped(chance, data)
    kind = chance.choice(
        (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"gAMA")
    )
    body = chance.choice((
        chance.randbytes(chance.randrange(40)),
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  99\n" + b"4d4d002a" * 200_000),
        b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="9' * 99,
        b"p\0\0" + zlib.compress(bytes(6_000_000)),
    ))  # fmt: skip
    at = chance.choice([33, *(m.start() - 4 for m in re.finditer(b"IDAT|IEND", data))])
    return (
        data[:at] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + data[at:]
    )


def disguised(chance: random.Random, data: bytes) -> bytes:
    """What begins as another format than it is."""
    mark = chance.choice(
        (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    )
    return mark + data[chance.choice((0, len(mark))) :]


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (flipped, cut, doubled, grown, chunked, disguised)


PROC = Path("/proc/self")  # where there is none the memory is not measured


def peak_mb() -> float:
    """The largest memory of this process since the last `forget_peak`, MB."""
    if not (PROC / "clear_refs").exists():
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+)", (PROC / "status").read_text())
    assert found
    return int(found[1]) / 1024


def forget_peak() -> float:
    if (PROC / "clear_refs").exists():
        (PROC / "clear_refs").write_text("5")
    return peak_mb()


@given(seed=st.integers(0, 2**32), mutations=st.lists(st.sampled_from(MUTATIONS), max_size=4))
def test_any_bytes_are_a_picture_or_one_line(
    seed: int, mutations: list[Callable[[random.Random, bytes], bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(seed)
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"photo{chance.choice(SUFFIXES)}"
    data = whole_file(chance)
    for mutate in mutations:
        data = mutate(chance, data) or b"x"
    path.write_bytes(data)
    shortest = chance.choice((None, 1, 8, 64))
    before = forget_peak()
    taken, said = within(MOST_SECONDS, lambda: outcome(path, shortest))
    assert peak_mb() - before < MOST_MB
    if taken is None:
        assert said.isprintable()
        assert 0 < len(said) <= LONGEST_MESSAGE
        assert mutations or not begins_as_photo(path), f"a whole photo is refused: {said}"
        return
    assert taken.mode == "RGB"
    assert len(taken.tobytes()) == 3 * taken.width * taken.height > 0
    assert shortest is None or min(taken.size) <= 2 * shortest
    if not mutations:
        drawn = Image.open(BytesIO(data)).size
        assert min(taken.size) >= min(shortest or min(drawn), min(drawn))
        assert shortest is not None or sorted(taken.size) == sorted(drawn)


def outcome(path: Path, shortest: int | None) -> tuple[Image.Image | None, str]:
    """The picture, or what is wrong."""
    try:
        return read_photo(path, shortest), ""
    except InfusionError as error:
        return None, str(error)
