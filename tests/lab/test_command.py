"""The command's module: quick to import, and clear about what is missing."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import sys
from pathlib import Path
import infusion_lab.command
heavy = {"diffusers", "transformers", "peft", "matplotlib", "scipy", "infusion_lab.run"} & sys.modules.keys()
assert not heavy, heavy
from infusion_core.errors import InfusionError
sys.modules["peft"] = None
try:
    infusion_lab.command.lab(Path("nowhere"))
except InfusionError as error:
    assert "peft is not installed" in str(error) and "infusion[standalone,lab]" in str(error), error
else:
    raise AssertionError("no error")
assert not Path("nowhere").exists()
"""


def test_options_load_alone_and_a_missing_extra_is_named(tmp_path):
    subprocess.run([sys.executable, "-c", ASK], check=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)})
