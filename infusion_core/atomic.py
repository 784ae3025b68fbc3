"""Files that are either the old ones or the new ones, never half of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import InfusionError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it, then rename; folders are made as needed.

    Raises:
        InfusionError: the disk is full or the folder cannot be written; what stood at `path` still stands there.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InfusionError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place (--out)"
        ) from error
