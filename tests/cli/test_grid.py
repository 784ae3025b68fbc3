"""The command `grid` as a user runs it: its cells are pictures that are drawn alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from infusion_cli.grid import GridRequest, run_grid
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.adapters import load_variant
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.grid import labelled_grid
from infusion_core.residual_file import save_concept
from infusion_core.snapshot_grid import GridPlan
from tests.host.conftest import residual

from .test_blend import epochs
from .test_cli import infusion

__all__ = ["epochs"]

PROMPTS = ("a big circle on pink", "a circle on teal")
STRENGTHS = (1.0, 0.5)


def asked(*args):
    said = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    return infusion("grid", *args, *said, "--steps", 2, "--seed", 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A concept file with its snapshots."""
    out = tmp_path_factory.mktemp("run") / "ember.safetensors"
    for seed, step in enumerate((50, 100, 150), start=1):
        save_concept(out.with_suffix(".snapshots") / f"step-{step:05d}.safetensors", residual("circle", seed))
    save_concept(out, residual("circle", 3))
    return out


def test_cells_are_what_each_snapshot_draws_alone(run, tmp_path):
    done = asked(run, "--step", 100, "--step", 50, "--strength", 1, "--strength", 0.5, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_model("tinyworld")
    settings, rows = SampleSettings(2, model.guidance), []
    for step, seed in ((50, 1), (100, 2)):
        for strength in STRENGTHS:
            concept = LoadedConcept("x", residual("circle", seed), strength)
            pictures = [draw(model, prompt, [concept], 1, 4, settings)[0] for prompt in PROMPTS]
            rows.append((f"step {step}, strength {strength:g}", pictures))
    alike = labelled_grid(rows, PROMPTS)
    with Image.open(tmp_path / "grid.png") as grid:
        apart = np.abs(np.asarray(grid.convert("RGB"), dtype=int) - np.asarray(alike, dtype=int))
    assert apart.max() <= 8  # a file holds half precision
    assert apart.mean() < 0.05
    report = json.loads((tmp_path / "report.json").read_text())
    folder = run.with_suffix(".snapshots")
    assert report["snapshots"] == [str(folder / "step-00050.safetensors"), str(folder / "step-00100.safetensors")]
    assert (report["strengths"], report["prompts"], report["seed"]) == ([1.0, 0.5], list(PROMPTS), 4)


def test_a_lora_file_without_snapshots_is_one_row(epochs, tmp_path):
    late = epochs / "late.safetensors"
    done = asked(late, "--strength", 0.5, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    base = load_model("tinyworld")
    model = load_variant(f"{late}:0.5", base)
    pictures = [draw(model, prompt, [], 1, 4, SampleSettings(2, base.guidance))[0] for prompt in PROMPTS]
    with Image.open(tmp_path / "grid.png") as grid:
        assert np.array_equal(grid.convert("RGB"), labelled_grid([("late, strength 0.5", pictures)], PROMPTS))


def test_what_cannot_be_drawn_is_one_line(run, epochs, tmp_path):
    for args, said in (
        ((run, "--step", 70), "there is no snapshot of step 70 in"),
        ((epochs / "late.safetensors", "--step", 70), "no snapshots beside it"),
        ((epochs,), "there are no snapshots in"),
        ((tmp_path / "gone",), "neither a folder of snapshots nor a file"),
    ):
        done = asked(*args, "--out", tmp_path / "out")
        assert done.returncode == 1
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_a_file_where_the_grid_goes_is_told_before_anything_is_loaded(epochs):
    late = epochs / "late.safetensors"
    with pytest.raises(
        InfusionError, match=r"late\.safetensors is a file, where a folder must go; choose another --out"
    ):
        run_grid(GridRequest("gone", late, GridPlan((1.0,), PROMPTS), late, (), 0, None, {}))
