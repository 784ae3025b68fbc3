"""The user's folder of folders of photos. Of a place outside ComfyUI's input folder only what holds photos is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..infusion_core.captions import WORD_FILE, read_captions
from ..infusion_core.errors import InfusionError
from . import photo_files

MOST = 10_000  # folders; more is another folder than the user means


@dataclass(frozen=True)
class Subject:
    """A folder of photos of one subject.

    Attributes:
        name: of the folder, and of the concept's file.
        folder: where.
        files: what is in it, in natural order.
        why: it cannot be used; empty where it can.
    """

    name: str
    folder: Path
    files: tuple[Path, ...] = ()
    why: str = ""

    def fingerprint(self) -> str:
        """Changes with the photos, their captions, and what the folder says of its word."""
        try:
            word = " ".join(read_captions(self.folder / WORD_FILE))
        except InfusionError as error:
            word = str(error)
        return f"{self.name} {word} {photo_files.fingerprint(self.files)}"


def subjects_in(folder: str) -> list[Subject]:
    """The folders in a folder, by name.

    Args:
        folder: below ComfyUI's input folder, or an absolute path.

    Raises:
        InfusionError: there is no such folder, or no folder with photos in it.
    """
    root, below = photo_files.place_of(folder)
    missing = InfusionError(
        f"there is no folder with photos in {folder or 'nothing'}; name one that holds a folder of photos for each "
        "subject, below ComfyUI's input folder or as a whole path"
    )
    try:
        inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (OSError, ValueError):  # the latter for what no path can hold
        raise missing from None
    if not folder or not inside or len(inside) > MOST:
        raise missing
    found = [_subject(path, below) for path in inside]
    if not below:  # what else lies there is not the page's business
        found = [subject for subject in found if not subject.why]
    if not found:
        raise missing
    return found


def _subject(folder: Path, below: bool) -> Subject:
    name = photo_files.name_below_input(folder) if below else str(folder.resolve())
    try:
        return Subject(folder.name, folder, tuple(photo_files.files(name, ())))
    except InfusionError as error:
        return Subject(folder.name, folder, why=str(error))
