"""The user's photo files: which there are, which of them can be used, and the square of each.

What a folder holds is the core's to say (`infusion_core/photos.py`); here is what a page may learn of it. Whoever has
the page open can name any folder of this machine. Below ComfyUI's input folder every file is named. Of a folder
elsewhere come photos, and the names of files that look like some; that it is missing, closed or without a photo is one
and the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import folder_paths
from torch import Tensor

from ..infusion_core.captions import CAPTION_SUFFIX, read_captions
from ..infusion_core.errors import InfusionError
from ..infusion_core.photos import MOST_FILES, Skipped, begins_as_photo, by_name, list_photos, photo_bytes, read_photos
from .subject import Box, Square, square_of, to_mask, whole_of

CROPS = CENTER, SUBJECT, WHOLE = "center", "subject", "whole"
TOLD = 5  # skipped files that an error names
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".heic", ".heif", ".avif", ".tif", ".tiff")
Given = Tensor | Sequence[Box | None] | None  # masks or boxes: one per photo, or one for all


@dataclass
class Taken:
    """What came of the files.

    Attributes:
        names: of the files that were taken, in order.
        squares: what was taken of each, square or whole.
        captions: lines of the text beside each; none where there is no such file.
        cut_out: names of those whose mask is their own transparency.
        skipped: the others, with the reason.
        unnamed: further files that are not taken, which a page need not know.
    """

    names: list[str] = field(default_factory=list)
    squares: list[Square] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    cut_out: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unnamed: int = 0

    def told(self) -> str:
        """For the user."""
        lines = [f"{len(self.names)} photos: {', '.join(self.names)}"]
        captioned = [name for name, own in zip(self.names, self.captions, strict=True) if own]
        if captioned:
            lines.append(f"{len(captioned)} with captions: {', '.join(captioned)}")
        if self.cut_out:
            lines.append(f"{len(self.cut_out)} with transparency as mask: {', '.join(self.cut_out)}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped: {'; '.join(map(str, self.skipped))}")
        if self.unnamed:
            lines.append(f"{self.unnamed} other files")
        return "\n".join(lines)


def files(folder: str, uploads: Sequence[str]) -> list[Path]:
    """What is in a folder, in natural order, then what was uploaded.

    Args:
        folder: below ComfyUI's input folder, or an absolute path; empty for none.
        uploads: names below ComfyUI's input folder.

    Raises:
        InfusionError: there is no such folder, it holds too much, or nothing at all was given.
    """
    folder = folder.strip()
    if len(uploads) > MOST_FILES:
        raise InfusionError(f"{len(uploads)} photos are chosen; 3-6 of one subject are enough")
    found = [*(_listed(folder) if folder else []), *(_below_input(name) for name in uploads)]
    if not found:
        where = f"in {folder}" if folder else "chosen"
        raise InfusionError(f"there are no photos {where}; upload 3-6 of the subject, or name the folder that has them")
    return found


def place_of(folder: str) -> tuple[Path, bool]:
    """Where a folder is that the user names, and whether it is below ComfyUI's input folder.

    Raises:
        InfusionError: a name that leaves the input folder.
    """
    if _is_name(folder):
        return _below_input(folder), True
    try:
        return Path(folder).expanduser(), False
    except RuntimeError:  # there is no such user
        raise _nothing_in(folder) from None


def name_below_input(folder: Path) -> str:
    """What `files` calls a folder below ComfyUI's input folder."""
    return str(folder.relative_to(folder_paths.get_input_directory()))


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes when a photo is added, taken away, renamed or has another content or captions, whatever the dates say.

    What is no photo does not count: systems and editors leave files of their own in folders.
    """
    contents = [(path.name, content) for path in paths if (content := _content(path)) is not None]
    return hashlib.sha256(repr(contents).encode()).hexdigest()


def take(paths: Sequence[Path], edge: int, masks: Given, boxes: Given, crop: str, transparency: bool = True) -> Taken:
    """Read files one after another; what cannot be used, or was there before, is skipped and named.

    Args:
        paths: of the files.
        edge: of the squares, px; whole photos are not much larger than twice that.
        masks: MASK (M, H, W) of whole photos.
        boxes: of the subject, px of the upright photo.
        crop: what is taken, one of `CROPS`.
        transparency: where there are neither masks nor boxes, that of a photo is its mask.

    Raises:
        InfusionError: nothing can be used, there are other numbers of masks or boxes than photos, or almost nothing of
            a transparent photo is seen.
    """
    taken, follow = Taken(), crop == SUBJECT
    for photo in read_photos(paths, taken.skipped, None if follow or boxes is not None else 2 * edge):
        mask, box = _each(masks, len(taken.names)), _each(boxes, len(taken.names))
        own = photo.subject if transparency and masks is None and boxes is None else None
        if own is not None:
            mask = to_mask(own)
            taken.cut_out.append(photo.name)
        taken.names.append(photo.name)
        taken.captions.append(read_captions(photo.path.with_suffix(CAPTION_SUFFIX)))
        if crop == WHOLE:
            taken.squares.append(whole_of(photo.name, photo.picture, mask, box))  # type: ignore[arg-type]
        else:
            taken.squares.append(square_of(photo.name, photo.picture, edge, mask, box, follow))  # type: ignore[arg-type]
    _check(taken, paths, masks, boxes)
    return _tellable(taken, paths)


def _check(taken: Taken, paths: Sequence[Path], masks: Given, boxes: Given) -> None:
    """Raises InfusionError as `take` says."""
    if not taken.names:
        elsewhere = [path.parent for path in paths if not _is_below_input(path)]
        if elsewhere:
            raise _nothing_in("the folder")
        raise InfusionError(
            f"none of {len(paths)} files can be used: {'; '.join(map(str, taken.skipped[:TOLD]))}; give JPEG, PNG, "
            "WebP, BMP or GIF pictures"
        )
    for given, name in ((masks, "masks"), (boxes, "boxes")):
        if given is not None and len(given) not in (1, len(taken.names)):
            raise InfusionError(f"{len(given)} {name} for {len(taken.names)} photos; give one each, or one for all")


def _tellable(taken: Taken, paths: Sequence[Path]) -> Taken:
    """Without the names of files that are no pictures where a page has no business to know them."""
    captions = {f"{Path(name).stem}{CAPTION_SUFFIX}" for name in taken.names}
    others = told = [skipped for skipped in by_name(taken.skipped) if skipped.name not in captions]
    if not all(_is_below_input(path) for path in paths):
        told = [skipped for skipped in told if skipped.name.lower().endswith(PICTURES)]
    return replace(taken, skipped=told, unnamed=len(others) - len(told))


def _each(given: Given, index: int) -> Tensor | Box | None:
    """The mask or box of a photo; None where there are too few, which `_check` tells."""
    if given is None or len(given) <= index:
        return None if given is None or len(given) != 1 else given[0]
    return given[0] if len(given) == 1 else given[index]


def _listed(folder: str) -> list[Path]:
    """The files of a folder.

    Raises:
        InfusionError: it is missing or holds too much; of a folder that is not ComfyUI's, only that there is no photo.
    """
    if _is_name(folder):
        try:
            return list_photos(_below_input(folder))
        except InfusionError as error:
            raise InfusionError(f"{folder}: {error}") from None
    try:
        found = list_photos(Path(folder).expanduser())
    except (InfusionError, RuntimeError):  # RuntimeError: there is no such user
        raise _nothing_in(folder) from None
    if not any(map(begins_as_photo, found)):
        raise _nothing_in(folder)
    return found


def _is_name(folder: str) -> bool:
    """Whether a folder is named below ComfyUI's input folder, instead of by a whole path."""
    return not Path(folder).is_absolute() and not folder.startswith("~")


def _nothing_in(folder: str) -> InfusionError:
    return InfusionError(
        f"there are no photos in {folder} that can be used; name a folder with JPEG, PNG, WebP, BMP or GIF pictures, "
        "below ComfyUI's input folder or as a whole path"
    )


def _below_input(name: str) -> Path:
    root = Path(folder_paths.get_input_directory())
    path = root / name
    try:
        below = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # no name of a file, or links that go round
        below = False
    if not below:
        raise InfusionError(f"{name!r} is not below ComfyUI's input folder; give a whole path as the folder instead")
    return path


def _is_below_input(path: Path) -> bool:
    return path.parent.resolve().is_relative_to(Path(folder_paths.get_input_directory()).resolve())


def _content(path: Path) -> str | None:
    """A digest of a photo and its captions, or why these cannot be read; None of what is no photo."""
    try:
        digest = hashlib.sha256(photo_bytes(path)).hexdigest()
    except InfusionError:
        return None
    try:
        return f"{digest} {read_captions(path.with_suffix(CAPTION_SUFFIX))}"
    except InfusionError as error:
        return f"{digest} {error}"
