"""Pictures, reports and the memory figure that every command leaves."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.atomic import write_atomic


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
