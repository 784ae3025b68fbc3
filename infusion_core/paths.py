"""What a path leads to."""

from __future__ import annotations

from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether a path leads to a file; one that is too long for the disk does not, though Python may say so loudly."""
    try:
        return path.is_file()
    except OSError:
        return False
