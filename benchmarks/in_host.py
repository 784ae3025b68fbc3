"""Running a benchmark inside ComfyUI's interpreter, and what ComfyUI says of the pack when it starts."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from comfyui_process.host import REPOSITORY, command, require_host
from comfyui_process.server import Server


def run_in_host(script: str, *options: object) -> str:
    """What a script of this folder prints when ComfyUI's interpreter runs it."""
    host = require_host()
    started = command(host, REPOSITORY / "benchmarks" / script, *options)
    done = subprocess.run(started, cwd=host, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def import_seconds() -> float:
    """How long ComfyUI says it took to import the pack, to a tenth of a second."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(require_host(), Path(folder) / "base")
        server.stop()
        log = server.log.read_text()
    line = re.search(r"([\d.]+) seconds(.*): .*custom_nodes.infusion$", log, re.MULTILINE)
    if line is None or line[2]:
        sys.exit(f"ComfyUI did not import the pack:\n{log[-3000:]}")
    return float(line[1])
