"""One run at a time: who writes a concept file, and what becomes of a run that was killed."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from infusion_core.errors import InfusionError, printable
from infusion_core.locks import hold

from .console import say


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep every other run away from a concept file for the length of a block.

    ``.NAME.lock`` beside it says which process holds it since when. It counts only while the operating system's lock on
    it is held, and that ends with its process: a file that a killed run left is taken over, with a word. On a file
    system without locks nobody is kept away.

    Raises:
        InfusionError: another run writes the same file, or the folder cannot be written.
    """
    path = out.with_name(f".{out.stem}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, out)
        before = _read(descriptor)
        _write(descriptor, _holder())
    except OSError as error:
        raise InfusionError(f"cannot write {path}: {error.strerror or error}; choose another place (--out)") from error
    if before:
        say(f"Note: an earlier run of {printable(out.name)} was killed ({before}); this one takes its place")
    try:
        yield
    finally:
        _release(path, descriptor)


def _locked(path: Path, out: Path) -> int:
    """The descriptor of the lock file, with the lock on it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        if hold(descriptor) == "others":
            holder = _read(descriptor) or "it has only just begun"
            os.close(descriptor)
            raise InfusionError(f"another run is writing {out} ({holder}); wait for it, or choose another --out")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its run has ended in this instant and removed it


def _release(path: Path, descriptor: int) -> None:
    """Let go; on Windows a file goes only once it is closed, and another run may have it by then."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        if sys.platform != "win32":
            path.unlink()
    os.close(descriptor)
    if sys.platform == "win32":
        with suppress(OSError):
            path.unlink()


def _holder() -> str:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})


def _read(descriptor: int) -> str:
    """Who holds the lock, or held it last, in words; nothing where nobody does."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 1000).decode(errors="replace")
    try:
        told = json.loads(text)
        return printable(f"process {told['process']} on {told['host']}, since {told['since']}")
    except (ValueError, KeyError, TypeError, RecursionError):
        return printable(text)


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())
