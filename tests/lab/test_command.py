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
for missing, tune, extras in (("peft", False, "standalone,lab"), ("optuna", True, "standalone,lab,tune")):
    sys.modules[missing] = None
    try:
        infusion_lab.command.lab(Path("nowhere"), tune=tune)
    except InfusionError as error:
        assert f"{missing} is not installed" in str(error) and f"infusion[{extras}]" in str(error), error
    else:
        raise AssertionError("no error")
    del sys.modules[missing]
assert not Path("nowhere").exists()
"""


def test_options_load_alone_and_a_missing_extra_is_named(tmp_path):
    subprocess.run([sys.executable, "-c", ASK], check=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)})
