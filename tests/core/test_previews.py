from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from PIL import Image

from infusion_core.captions import preview_prompts
from infusion_core.errors import InfusionError
from infusion_core.previews import MOST_ROWS, Strip, clear_strips, grid_of, read_strip, spread, strips_in
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualSettings, residual_trainer

from .toy import ToyDenoiser, prompts

PROMPTS = ("a photo of a cat", "a cat on the mööön")
REPOSITORY = Path(__file__).parents[2]


def objective_trainer(settings):
    """A run on the toy network."""
    denoiser = ToyDenoiser()
    return residual_trainer(denoiser, torch.ones(1, 4, 2, 2), prompts(2), "cat", settings)


def strip(step, prompts=PROMPTS):
    colours = [(step % 256, 40 * number, 90) for number in range(len(prompts))]
    return Strip(step, prompts, tuple(Image.new("RGB", (8, 6), colour) for colour in colours))


def test_what_is_kept_is_what_was_drawn(tmp_path):
    kept = strip(50)
    path = kept.save(tmp_path)
    assert path.name == "step-00050.png"
    read = read_strip(path)
    assert (read.step, read.prompts) == (50, PROMPTS)
    assert [p.tobytes() for p in read.pictures] == [p.tobytes() for p in kept.pictures]


def test_only_strips_of_the_same_prompts_up_to_the_step_come_back(tmp_path):
    for step in (100, 5, 20):
        strip(step).save(tmp_path)
    strip(10, ("another",)).save(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "step-00001.png")
    (tmp_path / "step-00002.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    assert [s.step for s in strips_in(tmp_path, PROMPTS, 20)] == [5, 20]
    assert strips_in(tmp_path / "missing", PROMPTS, 20) == []
    clear_strips(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00001.png", "step-00002.png"]


def test_the_grid_has_a_row_for_each_step_and_a_column_for_each_prompt():
    strips = [strip(step) for step in range(10, 40, 10)]
    grid = grid_of(strips, "#ffffff", "#000000")
    pixels = [grid.getpixel((x, y)) for y in range(grid.height) for x in range(grid.width)]
    first = {}
    for place, colour in enumerate(pixels):
        first.setdefault(colour, (place // grid.width, place % grid.width))
    places = [[first[p.getpixel((0, 0))] for p in s.pictures] for s in strips]
    assert all(left[0] == right[0] and left[1] < right[1] for left, right in places)
    assert places[0][0][0] < places[1][0][0] < places[2][0][0]
    assert all(pixels.count(p.getpixel((0, 0))) == 48 for s in strips for p in s.pictures)


def test_many_steps_are_thinned_evenly():
    assert spread(list(range(5)), 8) == [0, 1, 2, 3, 4]
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    tall = grid_of([strip(step) for step in range(1, 200)], "#ffffff", "#000000")
    few = grid_of([strip(step) for step in range(1, MOST_ROWS + 1)], "#ffffff", "#000000")
    assert tall.height == few.height


def test_prompts_stand_for_the_subject_once():
    assert preview_prompts((), "sks cat") == ("a photo of a sks cat",)
    assert preview_prompts(("{} at sea", "a red {}"), "cat") == ("cat at sea", "a red cat")
    for bad, why in {
        ("a dog",): r"the preview prompt 'a dog' must hold {} once",
        ("{} and {}",): r"the preview prompt '{} and {}' must hold {} once",
        ("{} beside <tom>",): r"'cat beside <tom>' names <tom>; write {}",
        ("{}",) * 9: "9 preview prompts; give at most 8",
    }.items():
        with pytest.raises(InfusionError, match=why):
            preview_prompts(bad, "cat")


def test_a_record_tells_rates_and_means_of_the_steps_there_were():
    settings = ResidualSettings(steps=40, warmup_steps=7, snapshot_every=20)
    trainer = objective_trainer(settings)
    record, told = RunRecord(settings, 1, 8), []
    for report in trainer.run():
        record.add(report)
        told.append(report.learning_rate)
    assert record.rates == told
    window, means = record.means
    assert window == 25
    wanted = [sum(record.losses[end - 25 : end]) / 25 for end in range(25, 41)]
    assert means == pytest.approx(wanted, rel=1e-9)
    assert sum(loss < record.highest for loss in record.losses) >= 39
    assert RunRecord(settings, 1, 8, losses=[1.0] * 199 + [1e6]).highest == pytest.approx(1.1)
    assert RunRecord(settings, 1, 8).rates == []


def luminance(colour):
    """Of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def colours(path):
    """Constants of a module that name colours."""
    named = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            for name, value in zip(node.targets[0].elts, node.value.elts, strict=True):
                named[name.id] = value.value
    return {name: value for name, value in named.items() if str(value).startswith("#")}


def test_plots_of_nodes_are_told_from_their_ground():
    named = colours(REPOSITORY / "nodes" / "plot.py")
    assert contrast(named["INK"], named["PAPER"]) > 7
    assert all(contrast(named[name], named["PAPER"]) > 3 for name in ("GREY", "BLUE", "ORANGE", "VIOLET"))


def test_curves_of_pages_are_seen_in_dark_and_light():
    named = colours(REPOSITORY / "infusion_cli" / "curves.py")
    assert len(named) == 3
    assert all(contrast(colour, ground) > 3 for colour in named.values() for ground in ("#ffffff", "#121212"))
