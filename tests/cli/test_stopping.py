"""Runs that end where they rest, the snapshot that is kept, and what a report tells of the meter."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from infusion_cli.apt import AptRequest, run_apt
from infusion_cli.course import Course
from infusion_cli.train import run_train
from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.metering import unsaid_of
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS, training_images
from infusion_core.metrics.fisher import DenoiserPredictor, fisher_divergence
from infusion_core.residual_file import load_concept
from infusion_core.tensor_file import read_tensors
from infusion_core.training.apt import AptSettings
from infusion_core.training.gauges import CONCEPT_APART, DRAWS, LORA_APART, SEED, lora_meter, residual_meter
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.stopping import Finish, StopRule
from tests.fuzz.crashing import toy_model

PLATEAU, BEST = Finish("plateau"), Finish("never", "best")


RULE = StopRule()  # so short runs rest in snapshots that are nearer to each other than the default's


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("infusion_cli.train.residual_meter", partial(residual_meter, rule=RULE))


@pytest.fixture
def request_(toy_run):
    settings = ResidualSettings(steps=200, batch_size=4, snapshot_every=5, validation_draws=8, learning_rate=0.1)
    return replace(toy_run, settings=settings)


def measured(report):
    return report["meter"]["base"], [tuple(found) for found in report["validation"]]


def test_a_run_ends_where_it_rests_or_keeps_the_snapshot_at_which_it_did(request_, capsys):
    report = run_train(replace(request_, finish=PLATEAU), toy_model()).report
    base, losses = measured(report)
    mean = sum(base) / len(base)
    ends = [step for n, (step, _) in enumerate(losses, start=1) if RULE.rests(mean, losses[:n])]
    assert ends == [report["ended_at"]] == [report["taken_step"]]
    end = report["ended_at"]
    assert 5 < end < 195
    assert len(report["losses"]) == end
    assert load_concept(request_.out).training["steps"] == str(end)
    ended = f"Ended at step {end} of 200: it has come to rest (--stop plateau)"
    assert ended in " ".join(capsys.readouterr().out.split())

    whole = run_train(request_, toy_model()).report
    assert (whole["ended_at"], whole["taken_step"]) == (200, 200)
    assert whole["validation"][: len(losses)] == report["validation"]

    on = run_train(replace(request_, finish=BEST), toy_model())
    assert (on.report["ended_at"], on.report["taken_step"]) == (200, end)
    assert request_.out.read_bytes() == request_.places.snapshot(end).read_bytes()
    assert on.concept.training["steps"] == str(end)
    kept = f"Kept is the snapshot of step {end} of 200, at which it came to rest (--take best)"
    assert kept in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("finish", [PLATEAU, BEST])
def test_an_interrupted_run_ends_in_the_same_place_to_the_same_bytes(request_, monkeypatch, finish):
    asked = replace(request_, finish=finish)
    whole = run_train(asked, toy_model()).report
    bytes_, state = request_.out.read_bytes(), request_.places.state.read_bytes()
    written, snapshot = [], Course.snapshot

    def killed(course):
        written.append(snapshot(course))
        if len(written) == 2:
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(Course, "snapshot", killed)
        with pytest.raises(SystemExit):
            run_train(asked, toy_model())
    began, begin = [], Course.begin

    def noted(course, state):
        began.append(course.trainer.step)
        begin(course, state)

    with monkeypatch.context() as patched:
        patched.setattr(Course, "begin", noted)
        report = run_train(replace(asked, resume=True), toy_model()).report
    assert began == [10]  # from the start it would end in the same bytes
    assert request_.out.read_bytes() == bytes_
    assert request_.places.state.read_bytes() == state
    same = ("losses", "validation", "meter", "ended_at", "taken_step")
    assert [report[name] for name in same] == [whole[name] for name in same]
    again = run_train(replace(asked, resume=True), toy_model()).report  # there is nothing left to do
    assert [again[name] for name in same] == [whole[name] for name in same]
    on = run_train(replace(request_, resume=True), toy_model()).report  # without --stop it goes on
    assert on["ended_at"] == 200


def test_a_best_snapshot_that_is_gone_leaves_the_last(request_, capsys, monkeypatch):
    report = run_train(replace(request_, finish=BEST), toy_model()).report
    request_.places.snapshot(report["taken_step"]).unlink()
    again = run_train(replace(request_, finish=BEST, resume=True), toy_model()).report
    assert again["taken_step"] == again["ended_at"] == report["ended_at"]
    assert load_concept(request_.out).training["steps"] == str(report["ended_at"])
    assert "is gone; what was learned last is kept" in " ".join(capsys.readouterr().out.split())


def test_the_report_tells_what_was_measured_and_what_it_cost(request_):
    settings = replace(request_.settings, steps=200, snapshot_every=100, validation_draws=4)
    report = run_train(replace(request_, settings=settings), toy_model()).report
    readings = report["meter"]["readings"]
    assert [reading["step"] for reading in readings] == [100, 200]
    assert all(len(reading["overfitted"]) == 4 for reading in readings)
    assert readings[-1]["values"]["moved"] > 0
    assert 0 < report["meter_cost"]["share_of_passes"] <= 0.05
    assert 0 < report["meter_cost"]["share_of_seconds"] < 1
    json.dumps(report)


APT = AptSettings(steps=24, batch_size=2, rank=2, snapshot_every=2, learning_rate=1e-2, validation_draws=4).unrestrained
CONCEPT = TUNING_CONCEPTS["acorn"]


def test_the_best_snapshot_of_a_lora_is_kept(tmp_path, monkeypatch):
    rule = StopRule(late_gain=0.9, patience=1)  # so short a run would not rest
    monkeypatch.setattr("infusion_cli.apt.lora_meter", partial(lora_meter, rule=rule))
    folder = tmp_path / "photos"
    folder.mkdir()
    training_images(CONCEPT)[0].save(folder / "0.png")
    model = replace(load_model("tinyworld"), name="toy")
    out = tmp_path / "out" / "acorn.safetensors"
    request = AptRequest("toy", folder, CONCEPT.shape, "", out, APT, finish=BEST)
    report = run_apt(request, model)
    base, losses = measured(report)
    taken = rule.best(sum(base) / len(base), losses)
    assert taken is not None
    assert taken < report["ended_at"] == APT.steps
    assert report["taken_step"] == taken
    snapshot = out.with_suffix(".snapshots") / f"step-{taken:05d}.safetensors"
    assert out.read_bytes() == snapshot.read_bytes()
    assert read_tensors(out.read_bytes())[1]["ss_steps"] == str(taken)


def test_drift_is_how_far_prompts_without_the_subject_move(tinyworld):
    photos, word = training_images(CONCEPT)[:2], CONCEPT.shape
    trainer = apt_trainer(tinyworld, photos, fill(CAPTION_TEMPLATES, word), replace(APT, steps=4))
    objective = trainer.objective
    unsaid = unsaid_of(tinyworld.text, word, word)
    assert unsaid.subject == word
    assert [*unsaid.watched] == [word, "photo"]
    meter = lora_meter(trainer, objective, unsaid)
    assert meter.rule == StopRule(apart=LORA_APART)
    drift, collapse = meter.gauges
    with objective.lora.installed(), torch.no_grad():
        assert drift.read() == collapse.read() == 0
    with objective.lora.installed():
        list(trainer.run())
    prompts = [tinyworld.text.encode("")]  # TinyWorld knows no dog, no house, no fruit
    latents = tinyworld.encode(photos)
    with torch.no_grad():
        base = DenoiserPredictor(tinyworld.denoiser, prompts)
        own = _Within(objective.lora, base)
        found = fisher_divergence(base, own, latents, 1, tinyworld.denoiser.sigmas, DRAWS, SEED)
        with objective.lora.installed():
            assert drift.read() == pytest.approx(2 * found.values.mean().item() / latents[0].numel(), rel=1e-5)
            assert collapse.read() != 0
    assert drift.read.__closure__
    with objective.lora.installed(), torch.no_grad():
        assert drift.read() > 1e-6


class _Within:
    """A predictor with a LoRA put in for each pass alone."""

    def __init__(self, lora, predictor):
        self.lora, self.predictor = lora, predictor

    def __call__(self, *given):
        with self.lora.installed():
            return self.predictor(*given)


def test_a_word_with_an_identifier_should_stay_as_it_is(tinyworld):
    one = unsaid_of(tinyworld.text, CONCEPT.shape, CONCEPT.shape)
    other = unsaid_of(tinyworld.text, CONCEPT.shape, f"big {CONCEPT.shape}")
    assert len(other.prompts) == len(one.prompts) + 1
    said = tinyworld.text.encode(f"a photo of a {CONCEPT.shape}").conditioning.context
    assert torch.equal(other.prompts[-1].conditioning.context, said)
    trainer = trainer_for(tinyworld, training_images(CONCEPT)[:1], CONCEPT.shape, ResidualSettings(steps=1))
    assert trainer.validated is None
    assert residual_meter(trainer, trainer.objective).rule == StopRule(apart=CONCEPT_APART)


def test_a_subject_that_is_not_found_in_its_caption_is_not_watched(tinyworld):
    """As in the caption template "a photo of {}s on the beach"."""
    trainer = apt_trainer(tinyworld, training_images(CONCEPT)[:2], fill(CAPTION_TEMPLATES, CONCEPT.shape), APT)
    unsaid = unsaid_of(tinyworld.text, CONCEPT.shape, CONCEPT.shape)
    others = dict.fromkeys(("photo", "beach"), unsaid.watched["photo"])
    meter = lora_meter(trainer, trainer.objective, replace(unsaid, watched=others))
    assert [gauge.name for gauge in meter.gauges] == ["drift"]


@pytest.mark.parametrize(("steps", "warned"), [(15, True), (25, False)])
def test_a_run_that_is_too_short_to_rest_says_so_before_its_first_step(request_, capsys, steps, warned):
    run_train(replace(request_, settings=replace(request_.settings, steps=steps), finish=PLATEAU), toy_model())
    said = f"a run of {steps} steps, snapshots 5 apart, cannot come to rest before its last step"
    assert (said in capsys.readouterr().out) is warned
