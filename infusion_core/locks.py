"""Locks that the operating system lets go of when their process ends, however it ends."""

from __future__ import annotations

import errno
import sys
from typing import Literal

Held = Literal["ours", "others", "unknown"]

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # what systems say of a lock that another holds
_BYTE = 2**30  # the byte that is locked on Windows, beyond the text, which others may read then


def hold(descriptor: int) -> Held:
    """Lock an open file for as long as it stays open, or say at once whose the lock is.

    ``others`` may be another open file of this very process; ``unknown`` is a file system without locks.

    Args:
        descriptor: of a file opened for writing.
    """
    try:
        _lock(descriptor)
    except OSError as error:
        return "others" if error.errno in _TAKEN else "unknown"
    return "ours"


if sys.platform == "win32":
    import msvcrt
    import os

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
