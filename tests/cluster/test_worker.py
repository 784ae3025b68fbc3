"""A pack on one worker: what its concepts learn, and what becomes of the others when one cannot be learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from infusion_cluster import worker
from infusion_cluster.worker import Task, train_pack
from infusion_core.embedded.subject import SubjectPhotos
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import concept_from_bytes
from infusion_core.training.engine import DivergedError
from infusion_core.training.residual import ResidualSettings
from tests.embedded.conftest import tinyworld

__all__ = ["tinyworld"]
SETTINGS = ResidualSettings(steps=3, batch_size=2, snapshot_every=2, validation_draws=2)


def task(of, **changed):
    concept = CONCEPTS[of]
    photos = SubjectPhotos.of(training_images(concept)[:2])
    return replace(Task(of, f"my {of}", concept.shape, photos, SETTINGS, ("a photo of a {}", "a {}")), **changed)


def learned(outcome):
    return concept_from_bytes(outcome.data)


@pytest.fixture(scope="module")
def alone(tinyworld):
    return {name: train_pack(tinyworld, [task(name)], lambda _: None)[0] for name in ("ember", "wasp")}


def test_a_pack_learns_what_each_learns_alone(tinyworld, alone):
    seen = []
    together = train_pack(tinyworld, [task("ember"), task("wasp")], seen.append)
    assert seen == [1, 2, 3]
    assert [outcome.name for outcome in together] == ["ember", "wasp"]
    for outcome in together:
        wanted, found = learned(alone[outcome.name]), learned(outcome)
        for name, tensor in wanted.tensors.items():
            assert (found.tensors[name] - tensor).norm() < 1e-3 * tensor.norm()  # stored in half precision
        assert found.training["title"] == f"my {outcome.name}"
        assert float(found.training["validation_loss"]) == pytest.approx(
            float(wanted.training["validation_loss"]), abs=2e-5
        )
        assert outcome.told["losses"] == pytest.approx(alone[outcome.name].told["losses"], rel=1e-4)
        assert [step for step, _ in outcome.told["validation"]] == [2, 3]
        assert "step 2: loss" in "".join(outcome.log)


def test_what_cannot_be_learned_does_not_keep_the_others_from_it(tinyworld, alone):
    bad = task("wasp", name="bad", templates=("a photo",))
    first, other = train_pack(tinyworld, [bad, task("ember")], lambda _: None)
    assert first.data is None
    assert "must hold {} once" in first.why
    assert other.data == alone["ember"].data


def test_when_a_run_breaks_down_each_is_tried_alone(tinyworld, alone, monkeypatch):
    """One whose photos are all of one colour stands for one that diverges."""
    plain, runs = SubjectPhotos.of([Image.new("RGB", (64, 64), "red")]), []
    whole = worker._learn

    def breaking(members, at):
        runs.append([member.task.name for member in members])
        if any(member.task.name == "plain" for member in members):
            raise DivergedError("the loss is nan at step 2; lower the learning rate")
        whole(members, at)

    monkeypatch.setattr(worker, "_learn", breaking)
    outcomes = train_pack(tinyworld, [task("ember"), task("wasp", name="plain", photos=plain)], lambda _: None)
    assert runs == [["ember", "plain"], ["ember"], ["plain"]]
    assert outcomes[0].data == alone["ember"].data
    assert (outcomes[1].data, outcomes[1].why) == (None, "the loss is nan at step 2; lower the learning rate")
    assert "with 1 others" in outcomes[0].log[1]


def test_photos_that_are_not_finite_are_the_tasks_own_fault(tinyworld, monkeypatch):
    encode = type(tinyworld).encode

    def broken(self, photos):
        latents = encode(self, photos)
        return latents * torch.nan if len(photos) == 1 else latents

    monkeypatch.setattr(type(tinyworld), "encode", broken)
    single = task("wasp", photos=SubjectPhotos.of(training_images(CONCEPTS["wasp"])[:1]))
    other, failed = train_pack(tinyworld, [task("ember"), single], lambda _: None)
    assert other.data is not None
    assert "not a finite number" in failed.why
