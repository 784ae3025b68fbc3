"""An environment that could not be made does not stand in the way of the next `make`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
GOOD = '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = --clear ] && rm -rf "$2"; shift; done\nmkdir -p "$1/bin"\n'
GOOD += 'printf "#!/bin/sh\\nexit 0\\n" > "$1/bin/python"; chmod +x "$1/bin/python"\n'
# How `python -m venv DIR` can end: with nothing, with a link to nowhere, or with a python that has no pip.
BROKEN = {
    "nothing": "exit 1",
    "link": "mkdir -p .venv/bin; ln -s /gone .venv/bin/python; exit 1",
    "no pip": 'mkdir -p .venv/bin; printf "#!/bin/sh\\n[ \\$1 = -c ]\\n" > .venv/bin/python; '
    "chmod +x .venv/bin/python; exit 1",
}


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("way", BROKEN)
def test_a_failed_environment_is_made_again(way, tmp_path):
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").touch()
    for name, text in (("broken", f"#!/bin/sh\n{BROKEN[way]}\n"), ("good", GOOD)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def make(python: str) -> int:
        command = ["make", ".venv/.ready", f"PYTHON=./{python}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode

    assert make("broken") != 0
    assert not (tmp_path / ".venv" / ".ready").exists()
    assert make("good") == 0
    assert (tmp_path / ".venv" / ".ready").exists()
