"""The user's photo files: which there are, which of them can be used, and the square of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
from torch import Tensor

from ..infusion_core.errors import InfusionError
from ..infusion_core.photos import read_photo
from . import library
from .subject import Box, Square, square_of

MOST = 200  # files of a folder; one that holds more is not the folder of a subject
Given = Tensor | Sequence[Box | None] | None  # masks or boxes: one per photo, or one for all


@dataclass
class Taken:
    """What came of the files.

    Attributes:
        names: of the files that were taken, in order.
        squares: what was taken of each.
        skipped: the names of the others, with the reason.
    """

    names: list[str] = field(default_factory=list)
    squares: list[Square] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def told(self) -> str:
        """For the user."""
        lines = [f"{len(self.names)} photos: {', '.join(self.names)}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped: {'; '.join(self.skipped)}")
        return "\n".join(lines)


def files(folder: str, uploads: Sequence[str]) -> list[Path]:
    """The files of a folder in natural order, then those that were uploaded.

    Args:
        folder: below ComfyUI's input folder, or an absolute path; empty for none.
        uploads: names below ComfyUI's input folder.

    Raises:
        InfusionError: there is no such folder, it holds too much, or nothing at all was given.
    """
    listed = _listed(_folder(folder.strip())) if folder.strip() else []
    found = [*listed, *(_below_input(name) for name in uploads)]
    if not found:
        where = f"in {_folder(folder.strip())}" if folder.strip() else "chosen"
        raise InfusionError(f"there are no photos {where}; upload 3-6 of the subject, or name the folder that has them")
    return found


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes when a file is added, taken away, renamed or has another content, whatever the dates say."""
    return hashlib.sha256(repr([(path.name, _content(path)) for path in paths]).encode()).hexdigest()


def take(paths: Sequence[Path], edge: int, masks: Given, boxes: Given, follow: bool) -> Taken:
    """Read files one after another; what cannot be used, or was there before, is skipped and named.

    Args:
        paths: of the files.
        edge: of the squares, px.
        masks: MASK (M, H, W) of whole photos.
        boxes: of the subject, px of the upright photo.
        follow: take the square round the subject instead of the middle one.

    Raises:
        InfusionError: nothing can be used, or there are other numbers of masks or boxes than photos.
    """
    taken, seen = Taken(), dict[str, str]()
    for path in paths:
        content = _content(path)
        if content in seen:
            taken.skipped.append(f"{path.name} (the same as {seen[content]})")
            continue
        try:
            photo = read_photo(path, None if follow or boxes is not None else 2 * edge)
        except InfusionError as error:
            taken.skipped.append(f"{path.name} ({error})")
            continue
        seen[content], index = path.name, len(taken.names)
        mask, box = _each(masks, index), _each(boxes, index)
        taken.names.append(path.name)
        taken.squares.append(square_of(path.name, photo, edge, mask, box, follow))  # type: ignore[arg-type]
    _check(taken, paths, masks, boxes)
    return taken


def _check(taken: Taken, paths: Sequence[Path], masks: Given, boxes: Given) -> None:
    """Raises InfusionError as `take` says."""
    if not taken.names:
        raise InfusionError(
            f"none of {len(paths)} files in {paths[0].parent} can be used: {'; '.join(taken.skipped[:5])}; give JPEG, "
            "PNG, WebP, BMP or GIF pictures"
        )
    for given, name in ((masks, "masks"), (boxes, "boxes")):
        if given is not None and len(given) not in (1, len(taken.names)):
            raise InfusionError(f"{len(given)} {name} for {len(taken.names)} photos; give one each, or one for all")


def _each(given: Given, index: int) -> Tensor | Box | None:
    """The mask or box of a photo; None where there are too few, which `_check` tells."""
    if given is None or len(given) <= index:
        return None if given is None or len(given) != 1 else given[0]
    return given[0] if len(given) == 1 else given[index]


def _listed(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if len(found) > MOST:
        raise InfusionError(f"{folder} holds {len(found)} files; name a folder with 3-6 photos of one subject")
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """2.jpg before 10.jpg."""
    parts = re.findall(r"\d+|\D+", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    path = path if path.is_absolute() else _below_input(name)
    if not path.is_dir():
        raise InfusionError(f"there is no folder {path}; name one below ComfyUI's input folder, or a whole path")
    return path


def _below_input(name: str) -> Path:
    root = Path(folder_paths.get_input_directory())
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InfusionError(f"{name!r} is not below ComfyUI's input folder; give a whole path as the folder instead")
    return path


def _content(path: Path) -> str:
    """A digest of a file, or its path where it cannot be read."""
    try:
        return library.digest(path)
    except OSError:
        return str(path)
