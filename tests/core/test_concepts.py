"""A concept at a strength, windows, and what a run tells in the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.concepts import LoadedConcept, words_of
from infusion_core.errors import InfusionError
from infusion_core.residuals import LAYOUTS, architecture_name, zero_residual
from infusion_core.schedule import ALWAYS, NEVER, Curve, Window
from infusion_core.training.engine import StepReport
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualSettings

from .sd15 import SD15


def test_a_window_holds_its_start_and_not_its_end():
    window = Window(0.25, 0.5)
    assert [window.covers(done) for done in (0.0, 0.2499, 0.25, 0.4999, 0.5, 1.0)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert ALWAYS.covers(0.0)
    assert ALWAYS.covers(0.999)
    assert not any(NEVER.covers(done / 10) for done in range(11))


def test_windows_may_be_whole_or_empty():
    assert Window(0.0, 1.0) == Window() == ALWAYS
    assert not Window(0.3, 0.3).covers(0.3)


@pytest.mark.parametrize("bounds", [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1), (float("nan"), 1.0)])
def test_a_window_lies_within_the_run(bounds):
    with pytest.raises(InfusionError, match="must lie in 0 to 1, start before end"):
        Window(*bounds)


def test_a_curve_is_level_outside_its_points_and_straight_between():
    curve = Curve(((0.2, 1.0), (0.6, 0.5), (0.8, -1.0)))
    assert [curve.at(share) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)] == [1.0, 1.0, 0.75, 0.5, -1.0, -1.0]
    assert curve.at(0.75) == pytest.approx(-0.625)
    assert Curve(((0.3, 2.0),)).at(0.0) == Curve(((0.3, 2.0),)).at(1.0) == 2.0


def test_two_points_at_one_share_are_a_step():
    curve = Curve(((0.0, 1.0), (0.5, 1.0), (0.5, 0.0)))
    assert [curve.at(share) for share in (0.4999, 0.5, 0.7)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ((), "at least one point"),
        (((-0.1, 1.0),), "-0.1:1 must be a share of the run"),
        (((0.5, float("nan")),), "0.5:nan must be"),
        (((0.5, 1.0), (0.4, 1.0)), "0.4 comes after 0.5"),
    ],
)
def test_a_curve_runs_from_the_start_of_the_run_to_its_end(points, said):
    with pytest.raises(InfusionError, match=said):
        Curve(points)


def test_a_curve_scales_the_strength_and_adds_nothing_where_it_is_zero():
    concept = LoadedConcept(
        "tom", zero_residual(SD15, "cat"), 0.5, window=Window(0.1, 1), curve=Curve(((0, 1), (0.5, 0)))
    )
    assert concept.scaled(0.25).strength == 0.25
    assert [concept.adds_at(share) for share in (0.0, 0.1, 0.4, 0.5, 0.9)] == [False, True, True, False, False]
    plain = replace(concept, curve=None)
    assert plain.scaled(0.25) is plain
    assert plain.adds_at(0.5)


def test_strength_is_scaled_block_by_block():
    concept = LoadedConcept("tom", zero_residual(SD15, "cat"), 0.5, {"mid": 3.0, "up.1": 0.0})
    found = {site.block: concept.strength_at(site) for site in SD15.sites}
    assert found == {"down.0": 0.5, "down.1": 0.5, "down.2": 0.5, "mid": 1.5, "up.1": 0.0, "up.2": 0.5, "up.3": 0.5}


def test_maps_are_replaced_as_trained_unless_told_otherwise():
    replaced = LoadedConcept("tom", zero_residual(SD15, "cat"))
    own = LoadedConcept("tom", replace(replaced.residual, training={"replace_maps": "false"}))
    assert (replaced.map_window, own.map_window) == (ALWAYS, NEVER)
    some = replace(own, residual=replace(own.residual, training={"replacement_end": "0.4"}))
    assert some.map_window == Window(0.0, 0.4)
    half = Window(0.0, 0.5)
    assert replace(replaced, replacement=NEVER).map_window == NEVER
    assert replace(own, replacement=half).map_window == half


def test_where_two_windows_overlap():
    assert Window(0.0, 0.4).overlap(Window(0.2, 1.0)) == Window(0.2, 0.4)
    assert Window(0.5, 1.0).overlap(Window(0.0, 0.4)) == NEVER
    assert ALWAYS.overlap(NEVER) == NEVER


def test_concepts_move_whole():
    moved = LoadedConcept("tom", zero_residual(SD15, "cat"), 0.5, {"mid": 2.0}, NEVER, NEVER).to("cpu", torch.float16)
    assert {t.dtype for t in moved.residual.tensors.values()} == {torch.float16}
    assert (moved.strength, moved.blocks, moved.window, moved.replacement) == (0.5, {"mid": 2.0}, NEVER, NEVER)
    assert words_of([moved, replace(moved, name="rex")]) == {"tom": "cat", "rex": "cat"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_blank_residual_is_zero_at_every_place(layout):
    blank = zero_residual(SD15, "cat", layout, bins=2, tokens=3)
    assert {k: t.shape for k, t in blank.tensors.items()} == {k: (2, 3, w) for k, w in SD15.places(layout).items()}
    assert all(not t.any() for t in blank.tensors.values())
    assert (blank.bins, blank.tokens, blank.parameter_count) == (2, 3, 6 * sum(SD15.places(layout).values()))
    assert all((blank.at(site) is not None) for site in SD15.sites)
    assert (blank.word, blank.architecture, blank.context_width, blank.prediction) == ("cat", "sd1", 768, "epsilon")


def test_what_no_residual_can_be():
    with pytest.raises(InfusionError, match="unknown layout 'spiral'; choose one of: block, layer, value"):
        zero_residual(SD15, "cat", "spiral")
    for counts in ({"bins": 0}, {"tokens": 0}):
        with pytest.raises(InfusionError, match="start at 1"):
            zero_residual(SD15, "cat", **counts)


def test_families_are_told_by_the_width_of_the_text():
    assert [architecture_name(w) for w in (128, 160, 768, 1024, 2048, 640)] == [
        "tinyworld",
        "tinyworld2",
        "sd1",
        "sd2",
        "sdxl",
        "unet640",
    ]


def test_a_concept_file_tells_of_its_run():
    record = RunRecord(ResidualSettings(batch_size=2, accumulation=3, learning_rate=0.01, seed=9), 5, 512)
    record.add(StepReport(1, 4, 0.5, 0.01, None))
    record.add(StepReport(2, 4, 0.25, 0.01, 0.123456))
    record.wrote(2, "two.safetensors")
    blank = replace(zero_residual(SD15, "cat"), training={"replace_maps": "false"})
    told = record.described(blank, 2, "tom", b"picture")
    assert told.training == {
        "replace_maps": "false", "steps": "2", "lr": "0.01", "batch": "6", "images": "5", "seed": "9",
        "resolution": "512x512", "title": "tom", "validation_loss": "0.12346",
    }  # fmt: skip
    assert told.thumbnail == b"picture"
    assert "validation_loss" not in record.described(blank, 1, "tom", b"").training
    assert record.course() == {
        "losses": [0.5, 0.25],
        "validation": [[2, 0.123456]],
        "snapshots": [{"step": 2, "validation_loss": 0.123456, "file": "two.safetensors"}],
    }
    resumed = RunRecord(record.settings, 5, 512)
    resumed.restore(record.course())
    assert resumed.course() == record.course()
    assert resumed.validated(2) == 0.123456
    resumed.wrote(2, "again.safetensors")
    assert [s["file"] for s in resumed.course()["snapshots"]] == ["again.safetensors"]


def refusal(concept, base):
    with pytest.raises(InfusionError) as refused:
        concept.check_fits(base)
    return str(refused.value)


def test_a_concept_of_another_model_is_refused_word_for_word():
    made, remedy = "the concept 'cat' was made for", "load that base model or train the concept again on this one"
    concept, wide = zero_residual(SD15, "cat", "value"), [replace(s, value_width=64) for s in SD15.sites]
    assert refusal(concept, replace(SD15, architecture="sd2")) == f"{made} sd1, not sd2; {remedy}"
    assert refusal(concept, replace(SD15, context_width=9)) == f"{made} context width 768, not 9; {remedy}"
    other = refusal(concept, replace(SD15, prediction="v_prediction"))
    assert other == f"{made} epsilon models, this one predicts v_prediction; {remedy}"
    missing = refusal(concept, replace(SD15, sites=SD15.sites[1:]))
    assert missing == f"{made} a UNet with input.1.0, which this model lacks; {remedy}"
    assert refusal(concept, replace(SD15, sites=tuple(wide))) == f"{made} width 320 at input.1.0, not 64; {remedy}"
    concept.check_fits(SD15)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -1e30])
def test_a_strength_is_a_number_of_use(strength):
    residual = zero_residual(SD15, "cat")
    with pytest.raises(InfusionError, match="the strength of 'tom' must be a number up to 1000, got"):
        LoadedConcept("tom", residual, strength)
    with pytest.raises(InfusionError, match="the strength of 'tom' must be a number up to 1000, got"):
        LoadedConcept("tom", residual, blocks={"mid": strength})
