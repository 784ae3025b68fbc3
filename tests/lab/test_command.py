"""The command's module: quick to import, and clear about what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infusion_core.errors import InfusionError

from .asking import ask_lab

ASK = """
import sys
from pathlib import Path
import infusion_lab.command
heavy = {"diffusers", "transformers", "peft", "matplotlib", "scipy", "infusion_lab.run"} & sys.modules.keys()
assert not heavy, heavy
import typer
from typer.testing import CliRunner
app = typer.Typer()
app.command()(infusion_lab.command.lab)
for missing, tune, extras in (("peft", False, "standalone,lab"), ("optuna", True, "standalone,lab,tune")):
    sys.modules[missing] = None
    error = CliRunner().invoke(app, ["--out", "nowhere", *(["--tune"] if tune else [])]).exception
    assert f"{missing} is not installed" in str(error) and f"pip install -e '.[{extras}]'" in str(error), error
    del sys.modules[missing]
assert not Path("nowhere").exists()
"""


def test_options_load_alone_and_a_missing_extra_is_named(tmp_path):
    subprocess.run([sys.executable, "-c", ASK], check=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)})


IGNORED = {
    ("--model", "sd", "--finished"): "--finished does nothing with --model",
    ("--model", "sd", "--tune"): "--tune does nothing with --model",
    ("--tune", "--most-steps", "9"): "--most-steps does nothing with --tune",
    ("--dataset", "photos"): "--dataset needs --model",
    ("--model", "sd", "--samples", "9"): "--samples needs --pictures",
    ("--model", "sd", "--second-token", "x"): "--second-token needs --pairs",
    ("--trials", "3"): "--trials needs --tune",
    ("--model", "tinyworld", "--dataset", "photos"): "--dataset needs --model",
    ("--model", "tinyworld", "--quick", "--only", "nothing"): "the lab has no study 'nothing'",
    ("--model", "sd"): "--model needs --dataset, --clip and --dino",
}


@pytest.mark.parametrize("options", IGNORED)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, options):
    with pytest.raises(InfusionError) as refused:
        ask_lab(*options, "--out", str(tmp_path / "out"))
    assert IGNORED[options] in str(refused.value)
    assert not (tmp_path / "out").exists()
