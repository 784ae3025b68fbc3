"""Running a benchmark inside ComfyUI's interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.host.comfyui import REPOSITORY, find_host, host_python


def run_in_host(script: str, *options: object) -> str:
    """What a script of this folder prints when ComfyUI's interpreter runs it."""
    host = find_host()
    if host is None:
        sys.exit("no ComfyUI found; set COMFYUI_PATH")
    launcher = REPOSITORY / "tests" / "host" / "launcher.py"
    command = [host_python(host), str(launcher), str(host), str(REPOSITORY / "benchmarks" / script)]
    done = subprocess.run([*command, *map(str, options)], cwd=host, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout
