"""Photos from strangers: what a folder holds is taken or named, and no file keeps a decoder busy."""

from __future__ import annotations

import ast
import os
import re
import socket
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from infusion_core import colours
from infusion_core import photos as module
from infusion_core.errors import InfusionError
from infusion_core.photos import Skipped, begins_as_photo, by_name, list_photos, read_photo, read_photos

REPOSITORY = Path(__file__).resolve().parents[2]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def noise(size: tuple[int, int], seed: int = 0, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def why(data: bytes, tmp_path: Path) -> str:
    (tmp_path / "photo").write_bytes(data)
    with pytest.raises(InfusionError) as caught:
        read_photo(tmp_path / "photo")
    return str(caught.value)


# -- What a folder holds --------------------------------------------------------------------------------------------


def test_everything_in_a_folder_is_taken_or_named(tmp_path):
    photo = encoded(noise((8, 8)), "JPEG")
    files = {
        "10.jpg": photo,
        "9.heic": encoded(noise((8, 8), 1)),  # the content counts, not the name
        "no suffix": encoded(noise((8, 8), 2), "WEBP"),
        "again.jpg": photo,
        "._10.jpg": b"\0\5\x16\7\0\2\0\0Mac OS X",
        ".DS_Store": b"\0\0\0\1Bud1",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "empty.jpg": b"",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "web.avif": b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
        "scan.tif": encoded(noise((8, 8)), "TIFF"),
        "film.mov": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        "print.jpg": EPS,
        "paper.jpg": b"%PDF-1.7\n",
        "notes.txt": b"not a photo",
        "cut.jpg": photo[:-100],
        "a\x1b[31m\n.jpg": b"red",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "10.jpg")
    skipped: list[Skipped] = []
    taken = [photo.name for photo in read_photos(list_photos(tmp_path), skipped)]
    assert taken == ["9.heic", "10.jpg", "no suffix"]
    assert len(skipped) == len(files) + 3 - len(taken)
    ours = "not a JPEG, PNG, WebP, BMP or GIF picture"
    told = {file.name: file.why for file in skipped}
    assert told.pop("cut.jpg").startswith("damaged: ")
    assert told == {
        "again.jpg": "the same as 10.jpg",
        "linked.jpg": "the same as 10.jpg",
        "._10.jpg": "a hidden file",
        ".DS_Store": "a hidden file",
        "Thumbs.db": ours,
        "empty.jpg": "an empty file",
        "phone.heic": "a HEIC picture; save it as JPEG",
        "web.avif": "an AVIF picture; save it as JPEG",
        "scan.tif": "a TIFF picture or raw photo; save it as JPEG",
        "film.mov": "a film; save it as JPEG",
        "print.jpg": "PostScript; save it as JPEG",
        "paper.jpg": "a PDF; save it as JPEG",
        "notes.txt": ours,
        "folder.jpg": "a folder; its photos are not taken",
        "gone.jpg": "there is no such file",
        r"a\x1b[31m .jpg": ours,
    }
    assert [file.name for file in by_name(skipped)][:3] == ["._10.jpg", ".DS_Store", r"a\x1b[31m .jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "pipe2.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
        for name in ("pipe.jpg", "pipe2.jpg", "zero.jpg", "socket.jpg"):
            assert not begins_as_photo(tmp_path / name)
            with pytest.raises(InfusionError, match="not a file but a pipe or a device"):
                read_photo(tmp_path / name)


def test_folders_that_are_none(tmp_path):
    for gone in (tmp_path / "gone", tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "\ud800"):
        with pytest.raises(
            InfusionError, match=r"there is no such folder|the folder cannot be read: File name too long"
        ):
            list_photos(gone)
    for index in range(201):
        (tmp_path / f"{index}.jpg").touch()
    with pytest.raises(InfusionError, match="more than 200 files; name a folder with 3-6 photos"):
        list_photos(tmp_path)
    (tmp_path / "200.jpg").unlink()
    assert [path.stem for path in list_photos(tmp_path)] == [str(index) for index in range(200)]
    for gone in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "\ud800", tmp_path / "0.jpg" / "1.jpg"):
        with pytest.raises(InfusionError, match=r"there is no such file|cannot be read: "):
            read_photo(gone)


def test_no_interpreter_sees_a_file_that_is_called_a_photo(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.jpg").write_bytes(EPS)
    with pytest.raises(InfusionError, match="PostScript"):
        read_photo(tmp_path / "a.jpg")
    for disguise in (b"\xff\xd8\xff", b"BM", b"GIF89a"):
        assert why(disguise + EPS, tmp_path)
    assert not ran.exists()


def test_whoever_opens_a_picture_says_which_formats():
    for package in ("infusion_core", "infusion_cli", "infusion_lab", "infusion_cluster", "nodes"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                    assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


# -- What a file may cost -------------------------------------------------------------------------------------------


def test_scans_without_end_are_refused(tmp_path):
    data = encoded(noise((64, 64)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert why(data[:-2] + last * 100 + data[-2:], tmp_path) == "110 scans in one JPEG; save it again"
    preview = b"\xff\xe1" + struct.pack(">H", 2 + 400) + b"\xff\xda" * 200  # in a segment they are none
    (tmp_path / "photo").write_bytes(data[:2] + preview + data[2:] + b"\xff\xda\0\2" * 200)
    assert read_photo(tmp_path / "photo").tobytes() == Image.open(BytesIO(data)).tobytes()


def test_parts_without_end_are_refused(tmp_path):
    picture = noise((8, 8))
    png, gif, webp = (encoded(picture, kind) for kind in ("PNG", "GIF", "WEBP"))
    table = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    jpeg = encoded(picture, "JPEG")
    for data in (
        png[:33] + chunk(b"abCd", b"") * 60_000 + png[33:],
        gif[:table] + b"!\xfe\1a\0" * 60_000 + gif[table:],
        webp + b"abcd\0\0\0\0" * 60_000,
        jpeg[:2] + b"\xff\xfe\0\3a" * 60_000 + jpeg[2:],
    ):
        assert why(data, tmp_path) == "more than 50000 parts in one file; save it again"


@pytest.mark.parametrize("size", [(60_000, 3_000), (12_000, 12_000), (100_000, 10), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, size):
    header = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = why(data, tmp_path)
    assert told == f"{size[0]}x{size[1]} px are too many; save it smaller, 4000 px are plenty"


def test_a_photo_of_the_largest_telephones_is_taken_smaller_and_a_progressive_one_is_not(tmp_path):
    large = Image.new("L", (16_000, 12_000))
    (tmp_path / "a.jpg").write_bytes(encoded(large, "JPEG"))
    assert read_photo(tmp_path / "a.jpg", 512).size == (1000, 750)  # an eighth by the decoder, then a half
    assert "too many" in why(encoded(large, "JPEG"), tmp_path)
    (tmp_path / "b.jpg").write_bytes(encoded(large, "JPEG", progressive=True))
    with pytest.raises(InfusionError, match="16000x12000 px are too many"):
        read_photo(tmp_path / "b.jpg", 1024)


def test_a_webp_counts_twice(tmp_path):
    body = b"\x2f" + struct.pack("<I", (8000 - 1) | (8000 - 1) << 14) + bytes(7)
    data = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    assert why(b"RIFF" + struct.pack("<I", len(data)) + data, tmp_path).startswith("8000x8000 px are too many")


def test_a_run_length_bmp_is_refused(tmp_path):
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 4, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + header + bytes(1024) + b"\0\2\xff\xff"
    assert why(data, tmp_path) == "a BMP with run-length compression; save it as PNG"


def test_files_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 20)
    assert why(b"\xff\xd8\xff" + bytes(1 << 20), tmp_path) == "more than 1 MB; save it as JPEG"


def test_what_pillow_keeps_for_the_process_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    (tmp_path / "a.png").write_bytes(encoded(noise((8, 8))))
    assert read_photo(tmp_path / "a.png").size == (8, 8)
    assert Image.MAX_IMAGE_PIXELS == 4


# -- What a picture shows -------------------------------------------------------------------------------------------


def tags(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_as_pillow_understands_it(tmp_path, kind, orientation):
    for order, word in (("<", 3), (">", 3), (">", 4)):
        data = encoded(noise((24, 16)), kind, exif=b"Exif\0\0" + tags(orientation, order, word))
        (tmp_path / "photo").write_bytes(data)
        upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
        assert read_photo(tmp_path / "photo").tobytes() == upright.tobytes()


def test_orientations_that_stand_elsewhere(tmp_path):
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    raw = b"\nexif\n      26\n" + tags(6).hex().encode() + b"\n"
    png, jpeg = encoded(noise((24, 16))), encoded(noise((24, 16)), "JPEG")
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    for data in (
        png[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + png[33:],
        png[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)) + png[33:],
        png[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)) + png[33:],
        png[:33] + chunk(b"tEXt", b"Raw profile type exif\0" + raw) + png[33:],
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + jpeg[2:],
    ):
        (tmp_path / "photo").write_bytes(data)
        upright = Image.open(BytesIO(data)).transpose(Image.Transpose.ROTATE_270)  # older Pillows look in fewer places
        assert read_photo(tmp_path / "photo").tobytes() == upright.tobytes()


def test_of_a_long_animation_the_first_picture_is_read(tmp_path):
    first, second = noise((16, 16), 1, 1), noise((16, 16), 2, 1)
    first.putpixel((0, 0), 7)
    data = encoded(first, "GIF", save_all=True, append_images=[second], transparency=int(first.getpixel((0, 0))))
    frame = data[data.rindex(b"!\xf9") : -1]
    (tmp_path / "a.gif").write_bytes(data[:-1] + frame * 100_000 + b";")
    first = np.asarray(Image.open(BytesIO(data)).convert("LA"))
    shown = np.asarray(read_photo(tmp_path / "a.gif"))[..., 0]
    assert np.array_equal(shown, np.where(first[..., 1] == 0, 255, first[..., 0]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_photo_of_less_than_twice_the_shortest_edge_keeps_every_bit(tmp_path, kind):
    data = encoded(noise((300, 127)), kind)
    (tmp_path / "photo").write_bytes(data)
    assert read_photo(tmp_path / "photo", 64).tobytes() == Image.open(BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_photo_looks_the_same_when_it_is_read_smaller(tmp_path, kind):
    smooth = noise((40, 30), 3).resize((1600, 1200), Image.Resampling.BICUBIC)
    (tmp_path / "photo").write_bytes(encoded(smooth, kind, quality=95))
    small = read_photo(tmp_path / "photo", 256)
    assert small.size == (400, 300)
    squares = [np.asarray(ImageOps.fit(p, (128, 128), Image.Resampling.LANCZOS), float) for p in (small, smooth)]
    assert np.abs(squares[0] - squares[1]).mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("shortest", [None, 32])
def test_strips_are_not_seen(tmp_path, monkeypatch, mode, shortest):
    photo = noise((70, 100), 4, 1 if mode == "I;16" else 4)
    photo = Image.fromarray(np.asarray(photo).astype(np.uint16) * 99) if mode == "I;16" else photo
    photo = photo if mode in ("RGBA", "I;16") else photo.convert("RGB").convert(mode)
    (tmp_path / "photo").write_bytes(encoded(photo, "JPEG" if mode == "CMYK" else "PNG"))
    (whole,) = read_photos([tmp_path / "photo"], [], shortest)
    monkeypatch.setattr(colours, "_STRIP", 700)
    (strips,) = read_photos([tmp_path / "photo"], [], shortest)
    assert strips.picture.tobytes() == whole.picture.tobytes()
    assert (strips.alpha and strips.alpha.tobytes()) == (whole.alpha and whole.alpha.tobytes())
    assert (whole.alpha is not None) == (mode == "RGBA")
    assert whole.picture.size == ((70, 100) if shortest is None else (35, 50))


def test_no_profile_is_too_strange(tmp_path):
    photo = noise((8, 8))
    for profile in (b"x", bytes(128), bytes(5 << 20), b"\0\0\1\0" * 40):
        (tmp_path / "photo").write_bytes(encoded(photo, "PNG", icc_profile=profile))
        assert read_photo(tmp_path / "photo").tobytes() == photo.tobytes()


def test_no_name_of_a_part_matters_twice(tmp_path):
    jpeg = encoded(noise((24, 16)), "JPEG", exif=b"Exif\0\0" + tags(6))
    again = b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(tags(8))) + b"Exif\0\0" + tags(8)
    at = re.search(b"\xff\xdb", jpeg).start()
    (tmp_path / "photo").write_bytes(jpeg[:at] + again + jpeg[at:])
    upright = ImageOps.exif_transpose(Image.open(BytesIO(jpeg)))
    assert read_photo(tmp_path / "photo").tobytes() == upright.tobytes()


def alpha_of(path, shortest=None):
    (photo,) = read_photos([path], [], shortest)
    return photo.alpha


def steps_of_alpha(size=(12, 8)):
    """A picture whose transparency changes from place to place."""
    shades = (np.arange(size[0] * size[1]) * 37 % 256).astype(np.uint8).reshape(size[1], size[0])
    photo = Image.new("RGB", size, (10, 200, 30))
    photo.putalpha(Image.fromarray(shades))
    return photo, shades


def test_what_is_transparent_is_told_beside_the_picture(tmp_path):
    photo, shades = steps_of_alpha()
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "a.webp", lossless=True, exact=True)
    assert (np.asarray(alpha_of(tmp_path / "a.png")) == shades).all()
    assert (np.asarray(alpha_of(tmp_path / "a.webp")) == shades).all()
    tags = Image.Exif()
    tags[0x0112] = 6  # held upright
    photo.save(tmp_path / "b.png", exif=tags)
    assert (np.asarray(alpha_of(tmp_path / "b.png")) == np.rot90(shades, -1)).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpixel((2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "c.gif", transparency=0)
    wanted = np.full((4, 4), 255)
    wanted[1, 2] = 0
    assert (np.asarray(alpha_of(tmp_path / "c.gif")) == wanted).all()


def test_transparency_shrinks_with_its_picture(tmp_path):
    photo = Image.new("RGBA", (400, 200), (0, 0, 0, 0))
    photo.paste((255, 0, 0, 255), (100, 0, 400, 200))
    photo.save(tmp_path / "a.png")
    small = alpha_of(tmp_path / "a.png", 50)
    assert small.size == (100, 50)
    assert (np.asarray(small) == [0] * 25 + [255] * 75).all()


@pytest.mark.parametrize("least", [250, 255])
def test_a_photo_that_is_seen_everywhere_has_no_mask(tmp_path, least):
    photo = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    photo.putpixel((3, 3), (9, 9, 9, least))
    photo.save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert alpha_of(tmp_path / "a.png") is None
    assert alpha_of(tmp_path / "b.png") is None
    photo.putpixel((3, 3), (9, 9, 9, 249))
    photo.save(tmp_path / "a.png")
    assert alpha_of(tmp_path / "a.png") is not None
