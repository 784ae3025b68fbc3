"""Files that are either the old ones or the new ones, never half of them, whatever ends the process."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InfusionError
from .locks import hold

_NAME = ".infusion-{}.tmp"  # of a temporary file; as long whatever it becomes, so that any name will do
_BYTES = 8  # of chance in it
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
_GAP = 60.0  # seconds; on Windows a file is not locked between its last byte and its new name


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it, then rename; folders are made as needed.

    Temporary files that killed processes left in the folder are removed.

    Raises:
        InfusionError: the disk is full or the folder cannot be written; what stood at `path` still stands there.
    """
    with _explained(path), _temporary(path.parent, data) as temporary:
        temporary.replace(path)
        _sync(path.parent)


def write_new(path: Path, data: bytes) -> bool:
    """As `write_atomic`, but a file that is there already stays; whether the name was free.

    Of several threads or processes that write one name at once, one gets it.

    Raises:
        InfusionError: as `write_atomic`.
    """
    with _explained(path), _temporary(path.parent, data) as temporary:
        written = _claim(path, temporary)
        _sync(path.parent)
        return written


def check_writable(folder: Path) -> None:
    """Make a folder as needed, and a file in it that goes again.

    Raises:
        InfusionError: that is not possible.
    """
    with _explained(folder), _temporary(folder, b""):
        pass


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; those of living ones are locked, and stay."""
    with suppress(OSError):
        for path in list(folder.glob(_NAME.format("[0-9a-f]" * 2 * _BYTES))):
            _clear(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What the system says of a file, as an `InfusionError`."""
    try:
        yield
    except OSError as error:
        raise InfusionError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error


@contextmanager
def _temporary(folder: Path, data: bytes) -> Iterator[Path]:
    """A file of its own in a folder, on the disk to the last byte; gone afterwards unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    path, descriptor = _locked(folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            if sys.platform == "win32":
                file.close()  # no open file can be renamed there
            yield path
    finally:
        path.unlink(missing_ok=True)


def _locked(folder: Path) -> tuple[Path, int]:
    """A new temporary file and its descriptor, locked so that nobody takes it for a leftover."""
    while True:
        path = folder / _NAME.format(secrets.token_hex(_BYTES))
        descriptor = os.open(path, _NEW, 0o666)
        if hold(descriptor) != "others" and path.exists():
            return path, descriptor
        os.close(descriptor)  # another writer took it for one, in the instant before it was locked


def _clear(path: Path) -> None:
    """Remove a temporary file if its writer is gone."""
    with suppress(OSError):
        if sys.platform == "win32":
            if time.time() - path.stat().st_mtime > _GAP:
                path.unlink()  # fails while another process has it open
            return
        descriptor = os.open(path, os.O_RDWR)
        try:
            if hold(descriptor) == "ours":
                path.unlink()
        finally:
            os.close(descriptor)


def _claim(path: Path, temporary: Path) -> bool:
    """Give a temporary file a name if nothing has it; whether that was so."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: an empty file keeps the place
        return _claim_unlinked(path, temporary)


def _claim_unlinked(path: Path, temporary: Path) -> bool:
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        temporary.replace(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _sync(folder: Path) -> None:
    """Have a folder's new names on the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
