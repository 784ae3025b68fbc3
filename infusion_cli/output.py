"""Pictures, reports and the memory figure that every command leaves."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.atomic import check_writable, write_atomic
from infusion_core.errors import InfusionError


def check_out(folder: Path) -> None:
    """See that a folder for pictures is there or can be made, without making it.

    Raises:
        InfusionError: it cannot.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InfusionError(f"{there} is a file, where a folder must go; choose another --out")
    check_writable(there)


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG atomically."""
    write_atomic(path, png_bytes(picture))


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report.json` atomically."""
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())


def peak_rss_mb() -> float:
    """Peak resident memory of this process, MB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
