"""Photos, the same in every host: which files of a folder are taken, and each as an RGB picture.

The one boundary of what a stranger's picture file may do: out comes a picture or one `InfusionError`. Only regular
files of up to `MOST_BYTES` are opened, whose first bytes are those of a format we promise; the name does not count.
What they say beside the picture never reaches a decoder (`picture_files.py`).

It and what it stands on (`colours.py`), and the modules that draw (`grid.py`, `previews.py`), need Pillow.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .colours import in_rgb
from .errors import InfusionError, printable
from .picture_files import HEAD, PictureFile, format_of, picture_file

MOST_FILES = 200  # of a folder; one that holds more is not the folder of a subject
MOST_OF_CLASS = 5000  # of a folder of class pictures
WANTED = "3-6 photos of one subject"
MOST_BYTES = 128 << 20  # of a file
MOST_PIXELS = 200_000_000  # of a photo that can be decoded smaller; the largest telephones make so many
MOST_AT_ONCE = 100_000_000  # pixels that are held in memory, 4 bytes each
LONGEST_EDGE = 65_535  # px; JPEG has no longer one
LEAST_SEEN = 0.005  # share of a transparent photo that its subject takes
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOCK = Lock()  # what Pillow keeps for the whole process is ours while we decode


# -- Which files ----------------------------------------------------------------------------------------------------


class Skipped(NamedTuple):
    """A file that is not taken.

    Attributes:
        name: printable.
        why: with what to do, where something can be done.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


class Photo(NamedTuple):
    """A file that is taken.

    Attributes:
        name: printable.
        picture: RGB.
        digest: SHA-256 of the file.
        path: of the file.
        alpha: how much of each place is seen, greyscale of the picture's size; None where all of it is.
    """

    name: str
    picture: Image.Image
    digest: str
    path: Path
    alpha: Image.Image | None = None

    @property
    def subject(self) -> Image.Image | None:
        """Where the subject is, as the photo's own transparency tells: white; None where nothing is transparent.

        Raises:
            InfusionError: hardly anything is seen.
        """
        if self.alpha is None:
            return None
        seen = float(np.asarray(self.alpha, dtype=np.float64).mean()) / 255
        if seen < LEAST_SEEN:
            raise InfusionError(
                f"{self.name} is almost wholly transparent ({seen:.2%} of it is seen); save it without transparency, "
                "or set transparency off (--no-transparency)"
            )
        return self.alpha


def list_photos(folder: Path, most: int = MOST_FILES) -> list[Path]:
    """Everything in a folder, in natural order, for `read_photos` to take or skip. What is no folder is a list of one.

    Raises:
        InfusionError: there is no such folder, it cannot be read, or it holds too much; without its name.
    """
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return [folder]
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in islice(entries, most + 1)]
    except (FileNotFoundError, ValueError):  # ValueError: a name that no system has
        raise InfusionError("there is no such folder") from None
    except OSError as error:
        raise InfusionError(f"the folder cannot be read: {error.strerror}") from None
    if len(found) > most:
        raise InfusionError(f"more than {most} files; name a folder with {'fewer' if most > MOST_FILES else WANTED}")
    return sorted(found, key=lambda path: _natural(path.name))


def by_name(skipped: Sequence[Skipped]) -> list[Skipped]:
    """In the order of their names, as a folder shows them."""
    return sorted(skipped, key=lambda file: _natural(file.name))


def begins_as_photo(path: Path) -> bool:
    """Whether a file's first bytes are those of a photo; it may still be damaged."""
    try:
        with _opened(path):
            return True
    except InfusionError:
        return False


def read_photos(paths: Sequence[Path], skipped: list[Skipped], shortest: int | None = None) -> Iterator[Photo]:
    """Read files one after another; what cannot be used, or was there before, is skipped with a word.

    Args:
        paths: of the files.
        skipped: grows by the files that are not taken.
        shortest: see `read_photo`.
    """
    seen: dict[str, str] = {}
    for path in paths:
        name = printable(path.name)
        try:
            data = photo_bytes(path)
            digest = hashlib.sha256(data).hexdigest()
            if digest in seen:
                raise InfusionError(f"the same as {seen[digest]}")
            picture, alpha = picture_of(data, shortest)
        except InfusionError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        seen[digest] = name
        del data  # the caller may be at work for long
        yield Photo(name, picture, digest, path, alpha)


def photo_bytes(path: Path) -> bytes:
    """What is in a file that may be a photo; of another kind of file a few bytes are read.

    Raises:
        InfusionError: why it cannot be a photo, without its name.
    """
    with _opened(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InfusionError(f"more than {MOST_BYTES >> 20} MB; save it as JPEG")
    return data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that begins like a photo. A pipe or a device is never opened, which may hang or wind a tape.

    Raises:
        InfusionError: why it cannot be a photo, or be read.
    """
    if path.name.startswith("."):
        raise InfusionError("a hidden file")
    try:
        _require_file(path.stat())
        with os.fdopen(os.open(path, _READ), "rb") as file:
            _require_file(os.fstat(file.fileno()))  # it may be another one by now
            format_of(file.read(HEAD))
            file.seek(0)
            yield file
    except InfusionError:
        raise
    except (FileNotFoundError, ValueError):  # ValueError: a name that no system has
        raise InfusionError("there is no such file") from None
    except OSError as error:
        raise InfusionError(f"it cannot be read: {error.strerror}") from None


_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _require_file(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InfusionError("a folder; its photos are not taken")
    if not stat.S_ISREG(found.st_mode):
        raise InfusionError("not a file but a pipe or a device")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """2.jpg before 10.jpg; names that differ in case alone have an order too."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name


# -- One photo ------------------------------------------------------------------------------------------------------


def read_photo(path: Path, shortest: int | None = None) -> Image.Image:
    """A photo as RGB: turned as its EXIF says, in sRGB, alpha over white; of an animation the first picture.

    Args:
        path: the file.
        shortest: px. A photo whose shorter edge has twice as many, or more, is made smaller by a whole number as it is
            read (a JPEG by its decoder), to an edge of no less than this. Every other one keeps its size and its bits.

    Raises:
        InfusionError: why it cannot be read, without its name.
    """
    return picture_of(photo_bytes(path), shortest)[0]


def picture_of(data: bytes, shortest: int | None = None) -> tuple[Image.Image, Image.Image | None]:
    """`read_photo` of a file's content, and its alpha, see `Photo`.

    Raises:
        InfusionError: why it is no photo.
    """
    file = picture_file(data)
    try:
        with _pillow_as_we_need_it():
            photo, alpha = in_rgb(_decoded(file, shortest), file.profile, shortest)
        turn = _TURNS.get(file.orientation)
        if turn is None:
            return photo, alpha
        return photo.transpose(turn), alpha and alpha.transpose(turn)
    except InfusionError:
        raise
    except Exception as error:  # on strange bytes decoders raise whatever their parsing trips over
        why = str(error) if type(error) in (OSError, SyntaxError, ValueError) else "its content makes no sense"
        raise InfusionError(f"damaged: {why}") from error


def _decoded(file: PictureFile, shortest: int | None) -> Image.Image:
    """Raises InfusionError: too large, or what Pillow raises."""
    try:
        photo = Image.open(BytesIO(file.data), formats=(file.format,))
    except UnidentifiedImageError:
        raise InfusionError(f"damaged: it begins like a {file.format} picture and goes on as none") from None
    whole = photo.size
    if shortest is not None:
        photo.draft("RGB", (shortest, shortest))
    width, height = whole if file.at_once else photo.size
    held = width * height * (2 if file.format == "WEBP" else 1)  # whose decoder keeps two copies
    if whole[0] * whole[1] > MOST_PIXELS or held > MOST_AT_ONCE or max(whole) > LONGEST_EDGE:
        raise InfusionError(f"{whole[0]}x{whole[1]} px are too many; save it smaller, 4000 px are plenty")
    photo.load()
    return photo


@contextmanager
def _pillow_as_we_need_it() -> Iterator[None]:
    """Some packs tell Pillow to fill truncated files with gray, for the whole process. Pixels we count ourselves."""
    with _LOCK:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before
