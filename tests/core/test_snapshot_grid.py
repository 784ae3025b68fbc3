"""Which snapshots a grid shows, in which order, under which labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from infusion_core.errors import InfusionError
from infusion_core.grid import labelled_grid
from infusion_core.snapshot_files import snapshots_in
from infusion_core.snapshot_grid import MOST_CELLS, GridPlan


def coloured(snapshot, strength, prompt):
    return Image.new("RGB", (40, 30), (snapshot, int(strength * 100), len(prompt)))


def drawn(plan, snapshots):
    """The grid, and what was loaded for it."""
    loaded = []

    def load(*row):
        loaded.append(row)
        return row

    return plan.drawn(snapshots, load, lambda row, prompt: coloured(row[0], row[1], prompt)), loaded


def test_a_row_is_a_snapshot_at_a_strength_and_a_column_a_prompt():
    plan = GridPlan((0.5, 1.0), ("a cat", "a cat on the moon"))
    grid, loaded = drawn(plan, [("step 5", 50), ("step 10", 100)])
    assert loaded == [(50, 0.5), (50, 1.0), (100, 0.5), (100, 1.0)]  # once for each row
    rows = [
        (f"step {step}, strength {strength:g}", [coloured(10 * step, strength, prompt) for prompt in plan.prompts])
        for step in (5, 10)
        for strength in (0.5, 1.0)
    ]
    assert np.array_equal(grid, labelled_grid(rows, plan.prompts))


def test_a_strength_that_is_always_1_is_not_told():
    plan = GridPlan((1.0,), ("a cat",))
    grid, _ = drawn(plan, [("step 5", 50)])
    assert np.array_equal(grid, labelled_grid([("step 5", [coloured(50, 1.0, "a cat")])], ["a cat"]))


def test_snapshots_are_found_by_their_names_in_the_order_of_their_steps(tmp_path):
    for name in ("step-00010.safetensors", "step-00002.safetensors", "step-123456.safetensors", "state.safetensors",
                 "training.state", "step-1.safetensors", "mine.txt"):  # fmt: skip
        (tmp_path / name).touch()
    assert [step for step, _ in snapshots_in(tmp_path)] == [2, 10, 123456]
    assert snapshots_in(tmp_path, [10, 2]) == [(s, tmp_path / f"step-{s:05d}.safetensors") for s in (2, 10)]
    with pytest.raises(InfusionError, match=r"no snapshot of step 7 in .*; choose of: 2, 10, 123456"):
        snapshots_in(tmp_path, [2, 7])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InfusionError, match="there are no snapshots in"):
        snapshots_in(tmp_path / "empty")


def test_what_cannot_be_drawn_is_refused():
    for strengths, prompts in (((), ("a",)), ((1.0,), ())):
        with pytest.raises(InfusionError, match="at least one prompt and one strength"):
            GridPlan(strengths, prompts)
    with pytest.raises(InfusionError, match="a strength must be a number up to 1000, got nan"):
        GridPlan((float("nan"),), ("a",))
    plan = GridPlan((0.5, 1.0), ("a", "b"))
    assert plan.cells(MOST_CELLS // 4) == MOST_CELLS
    with pytest.raises(InfusionError, match=f"{MOST_CELLS + 4} pictures are too many"):
        drawn(plan, [("", 0)] * (MOST_CELLS // 4 + 1))
