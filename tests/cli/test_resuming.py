"""Runs that are resumed: what must be the same, and what becomes of what an earlier run left."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from infusion_cli.train import run_train
from infusion_core.errors import InfusionError
from infusion_core.training.state import TrainState, save_state
from tests.fuzz.crashing import toy_model

from .toy_runs import refusal, setting

OTHER = {
    "seed": (setting("seed", 4), "but seed was 0; give the same again, or leave --resume out to train from the start"),
    "rate": (setting("learning_rate", 0.5), "but learning-rate was 0.2; give"),
    "draws": (setting("validation_draws", 2), "but validation-draws was 1; give"),
    "word": (lambda request: replace(request, word="dog"), "but word was cat; give"),
    "templates": (lambda request: replace(request, templates=("a {}",)), "but template was ['a photo of a {}'"),
    "start": (lambda request: replace(request, start=request.out), "but --continue was not given; give"),
    "two": (
        lambda request: setting("seed", 4)(setting("steps", 9)(request)), "but steps was 12 and seed was 0; give"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_resume_names_what_differs(toy_ran, case):
    change, message = OTHER[case]
    before = toy_ran.places.state.read_bytes()
    assert message in refusal(change(toy_ran))
    assert toy_ran.places.state.read_bytes() == before


def test_resume_names_other_photos(toy_ran, toy_photos):
    Image.new("RGB", (4, 4), "pink").save(toy_photos / "1.png")
    assert "but photo 2 of 3 was another; give" in refusal(toy_ran)
    (toy_photos / "1.png").unlink()
    assert "but there were 3 photos, not 2; give" in refusal(toy_ran)
    Image.new("RGB", (4, 4), "teal").save(toy_photos / "1.bmp")  # the same picture, in another file
    run_train(toy_ran, toy_model())


def test_resume_names_another_model_and_not_another_name_of_it(toy_ran):
    other = toy_model()
    next(other.denoiser.parameters()).data[0] += 1
    assert "but the model was other weights of that name; give" in refusal(toy_ran, other)
    assert "but the model was toy; give" in refusal(toy_ran, replace(other, name="other"))
    run_train(toy_ran, replace(toy_model(), name="moved"))


def test_resume_names_another_start(toy_run, tmp_path):
    run_train(toy_run, toy_model())
    first, second = tmp_path / "first.safetensors", toy_run.places.snapshot(3)
    first.write_bytes(toy_run.out.read_bytes())
    went_on = replace(toy_run, out=tmp_path / "on" / "cat.safetensors", start=first)
    run_train(went_on, toy_model())
    assert "but --continue was given another concept" in refusal(replace(went_on, resume=True, start=second))
    assert "but --continue was given another concept" in refusal(replace(went_on, resume=True, start=None))
    run_train(replace(went_on, resume=True), toy_model())


def test_snapshots_may_be_kept_more_often(toy_ran):
    run_train(setting("snapshot_every", 5)(toy_ran), toy_model())


def test_a_spoilt_or_foreign_state_is_refused_in_one_line(toy_ran):
    state = toy_ran.places.state
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for data in (b"", whole[:-1], bytes(flipped), b"\0" * 100, toy_ran.out.read_bytes()):
        state.write_bytes(data)
        assert re.fullmatch(
            rf"{re.escape(str(state))} is not a training state .*start, without --resume", refusal(toy_ran)
        )
    save_state(state, TrainState(3, {}, {}, {}, {}))
    assert "is not the state of a run of this command; leave --resume out" in refusal(toy_ran)
    state.unlink()
    assert "nothing to resume" in refusal(toy_ran)
    state.mkdir()
    assert "is not a training state" in refusal(toy_ran)


def test_starting_afresh_sets_the_earlier_run_aside_and_touches_nothing_of_the_users(toy_ran, monkeypatch):
    before = {path.name: path.read_bytes() for path in toy_ran.places.snapshots.glob("*.safetensors")}
    assert len(before) > 1
    mine = toy_ran.places.snapshots / "mine.txt"
    mine.write_text("mine")
    monkeypatch.setattr("infusion_cli.course.Course.train", stop)
    with pytest.raises(SystemExit):
        run_train(replace(toy_ran, resume=False), toy_model())
    assert not toy_ran.places.state.exists()
    assert sorted(path.name for path in toy_ran.places.snapshots.iterdir()) == ["earlier", "mine.txt"]
    left = {path.name: path.read_bytes() for path in toy_ran.places.earlier.iterdir()}
    assert left == before
    assert mine.read_text() == "mine"
    assert "nothing to resume" in refusal(toy_ran)


def test_what_ctrl_c_left_is_no_snapshot_of_the_run_that_goes_on(toy_run, monkeypatch):
    whole = run_train(toy_run, toy_model()).report
    with monkeypatch.context() as patch:
        patch.setattr("infusion_cli.console.Interrupt.asked", True)
        with pytest.raises(SystemExit):
            run_train(toy_run, toy_model())
    assert (toy_run.places.snapshot(1)).is_file()
    resumed = run_train(replace(toy_run, resume=True), toy_model()).report
    assert resumed["snapshots"] == whole["snapshots"]
    kept = {path.name for path in toy_run.places.snapshots.glob("step-*.safetensors")}
    assert kept == {Path(snapshot["file"]).name for snapshot in whole["snapshots"]}


def test_what_cannot_be_trained_leaves_the_state(toy_ran):
    for photo in toy_ran.images.iterdir():
        photo.write_bytes(b"none")
    with pytest.raises(InfusionError, match="no photos"):
        run_train(replace(toy_ran, resume=False), toy_model())
    assert toy_ran.places.state.exists()


def stop(_):
    raise SystemExit
