"""Finding a ComfyUI on this machine, and the command that runs a file inside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER = Path(__file__).with_name("launcher.py")
INTERPRETERS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")


def find_host() -> Path | None:
    """COMFYUI_PATH, then the ComfyUI this folder is installed in, then ~/comfy/ComfyUI.

    Raises:
        FileNotFoundError: COMFYUI_PATH names no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not (Path(named) / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {named}, but there is no main.py in it")
        return Path(named)
    for folder in (REPOSITORY.parent.parent, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder
    return None


def require_host() -> Path:
    """`find_host`; ends the program with a clear line where there is none."""
    host = find_host()
    if host is None:
        sys.exit("no ComfyUI found; set COMFYUI_PATH")
    return host


def host_python(host: Path) -> str:
    """The host's own interpreter if it has a virtual environment, else this one."""
    return next((str(host / path) for path in INTERPRETERS if (host / path).exists()), sys.executable)


def command(host: Path, file: Path, *options: object) -> list[str]:
    """The command that runs a Python file in the host's interpreter, with the host's modules at hand."""
    return [host_python(host), str(LAUNCHER), str(host), str(file), *map(str, options)]
