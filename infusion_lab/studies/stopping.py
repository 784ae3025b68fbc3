"""Study: when to stop, and which snapshot to take. Runs that go on too long, scored and metered at every snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from infusion_core.embedded.metering import unsaid_of
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import Concept
from infusion_core.residuals import zero_residual
from infusion_core.training.apt import AptSettings
from infusion_core.training.engine import Trainer
from infusion_core.training.gauges import lora_meter, residual_meter
from infusion_core.training.meter import Meter
from infusion_core.training.residual import ResidualObjective

from ..bench import Bench
from ..measures import drawn_and_scored, error_rows
from ..methods.apt import Apt
from ..methods.infusion import Infusion
from ..methods.method import Learned, Subject
from ..store import Cell, Result, Row
from ..tinyworld import subjects_of

STUDY = "stopping"
LOSS = "validation_loss"
Metered = Infusion | Apt
PROMPTS, SEEDS = 6, 2  # of scored pictures, per concept and snapshot


def runs() -> dict[Metered, tuple[int, ...]]:
    """What is trained, and the steps of its snapshots: far beyond where it learns anything more."""
    return {
        Infusion(): tuple(range(50, 401, 50)),
        Apt(rung="plain").changed(learning_rate=5e-4): tuple(range(100, 801, 100)),
    }


def cells(bench: Bench) -> list[Cell]:
    """Per concept and method one cell: the tuning concepts first, on which the rule was chosen."""
    out, families = [], {method.family for method in bench.methods}
    if bench.scale.max_steps < max(max(steps) for steps in runs().values()):
        return []  # cut short they would not be too long
    for concept in [*bench.tuning_concepts, *bench.concepts]:
        for method, steps in runs().items():
            if method.family not in families:
                continue
            source = bench.source(method, subjects_of([concept]), max(steps), max(steps))
            scored, metered = (partial(compute, bench, method, concept, steps) for compute in (_scored, _metered))
            out.append(bench.cell(STUDY, method.key, concept.name, scored, concept, steps, PROMPTS, SEEDS, source))
            out.append(bench.cell(STUDY, f"{method.key}, metered", concept.name, metered, concept, steps, source))
    return out


def _scored(bench: Bench, method: Metered, concept: Concept, steps: tuple[int, ...]) -> Result:
    run, rows = bench.train(method, subjects_of([concept]), steps), []
    for step in steps:
        customised = method.apply(bench.studio, [run[step][0]])
        scored = drawn_and_scored(customised, concept, PROMPTS, bench.first_seeds(SEEDS), bench.sampling)
        rows += error_rows(STUDY, method.key, concept, step, scored)
    return Result(rows)


def _metered(bench: Bench, method: Metered, concept: Concept, steps: tuple[int, ...]) -> Result:
    """What the meter says of the base model (step 0) and of every snapshot."""
    (subject,) = subjects = subjects_of([concept])
    run, rows = bench.train(method, subjects, steps), list[Row]()

    def note(step: int, values: Mapping[str, float]) -> None:
        rows.extend(Row(STUDY, method.key, concept.name, step, "", bench.seed, m, v) for m, v in values.items())

    for step in steps:
        with loaded(bench, method, subject, run[step][0], max(steps)) as (trainer, meter):
            trainer.validation_loss()
            assert trainer.validated is not None
            reading = meter.take(max(steps), trainer.validated)
            heart = sum(reading.overfitted) / len(reading.overfitted)
            note(step, {LOSS: trainer.validated.mean().item(), "overfitted": heart, **reading.values})
            base = meter.base_loss
    note(0, {LOSS: base})
    return Result(rows)


@contextmanager
def loaded(
    bench: Bench, method: Metered, subject: Subject, learned: Learned, steps: int
) -> Iterator[tuple[Trainer[Any], Meter]]:
    """The engine where a snapshot was taken, and its meter."""
    model, tensors = bench.studio.base, learned.full(bench.studio.base.denoiser.device)
    if isinstance(method, Infusion):
        settings = replace(method.settings, steps=steps, snapshot_every=steps, seed=bench.seed)
        start = replace(zero_residual(model.denoiser.base, subject.word, settings.layout), tensors=tensors)
        trainer: Trainer[Any] = trainer_for(model, subject.photos, subject.word, settings, start=start)
        assert isinstance(trainer.objective, ResidualObjective)
        yield trainer, residual_meter(trainer, trainer.objective)
        return
    _, objective = method.trainer(bench.studio, (subject,), steps, bench.seed)
    objective.lora.load(tensors)
    trainer = Trainer(objective, replace(objective.settings, validation_draws=AptSettings().validation_draws))
    with objective.lora.installed():
        yield trainer, lora_meter(trainer, objective, unsaid_of(model.text, subject.word, subject.phrase("rare word")))
