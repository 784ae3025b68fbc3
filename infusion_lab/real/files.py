"""Text files that others wrote, and the paths that stand in them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from infusion_core.errors import InfusionError


def text_of(path: Path, remedy: str) -> str:
    """What is in a text file.

    Raises:
        InfusionError: it is missing, cannot be read or is not UTF-8; with the remedy.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InfusionError(f"{path} cannot be read: {reason}; {remedy}") from None


def inside(folder: Path, told: str, where: str, remedy: str) -> Path:
    """A path that a file gives, relative to its folder and nowhere else.

    Raises:
        InfusionError: it leaves the folder; says where it stands.
    """
    path = PurePosixPath(told)
    if path.is_absolute() or ".." in path.parts or "\\" in told:
        raise InfusionError(f"{where} names {told}, which is outside {folder}; {remedy}")
    return folder / path
