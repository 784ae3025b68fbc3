"""The meter: its numbers worked out pass by pass, what it costs, and what a resumed run has of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.noise import seeded
from infusion_core.training.engine import Trainer
from infusion_core.training.gauges import DRAWS, SEED, residual_meter
from infusion_core.training.meter import SHARE, Gauge, Meter
from infusion_core.training.objective import Noised
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualObjective, ResidualSettings
from infusion_core.training.stopping import Finish, StopRule

from .toy import ToyDenoiser, latents, prompts

SETTINGS = ResidualSettings(steps=40, batch_size=3, snapshot_every=10, validation_draws=6, learning_rate=0.05)


class Counting(ToyDenoiser):
    """Counts the rows that pass through it; one that gradients flow through counts three times."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0.0

    def predict(self, noised, sigma, conditioning, plan):
        self.rows += len(noised) * (3 if torch.is_grad_enabled() else 1)
        return super().predict(noised, sigma, conditioning, plan)


def run_of(denoiser, settings=SETTINGS):
    objective = ResidualObjective(denoiser, latents(), prompts(), "cat", settings)
    trainer = Trainer(objective, settings)
    record = RunRecord(settings, 2, 8, meter=residual_meter(trainer, objective))
    return objective, trainer, record


def test_overfitting_on_fixed_noise_is_the_papers_formula_at_each_level():
    meter = Meter(lambda: torch.tensor([0.5, 0.4, 0.3]), [], step_passes=10, validation_passes=3, temperature=5.0)
    reading = meter.take(1, torch.tensor([0.2, 0.4, 0.35]))
    assert reading.overfitted == [round(1 - math.exp(-5 * 0.3), 4), 0.0, 0.0]
    assert meter.base_loss == pytest.approx(0.4)


def test_the_base_models_losses_are_those_of_a_pass_without_anything_learned():
    denoiser = ToyDenoiser()
    _objective, trainer, record = run_of(denoiser)
    for _ in trainer.run():
        pass
    draws, steps = SETTINGS.validation_draws, len(denoiser.sigmas)
    times = torch.tensor([int((i + 0.5) * steps / draws) for i in range(draws)])
    eps = torch.randn(draws, 4, 2, 2, generator=seeded(SETTINGS.seed * 1_000_003 + 999_331))
    expected = []
    for i in range(draws):
        noised = Noised.of(latents()[i % 2][None], times[i : i + 1], eps[i : i + 1], denoiser.sigmas, "epsilon")
        said = denoiser.predict(noised.latents, noised.sigma, prompts()[i % 3].conditioning, Plan())
        expected.append((said - noised.wanted).square().mean().item())
    assert record.meter.base == pytest.approx(expected, rel=1e-5)
    assert trainer.validation_losses().tolist() != pytest.approx(expected, rel=1e-2)  # the concept is at work again


def test_how_far_the_word_has_moved_is_the_mean_square_between_two_predictions():
    denoiser = ToyDenoiser()
    settings = replace(SETTINGS, replace_maps=False)
    objective, trainer, record = run_of(denoiser, settings)
    (gauge,) = record.meter.gauges
    assert gauge.name == "moved"
    assert gauge.read() == 0
    for _ in trainer.run():
        pass
    generator = seeded(SEED)
    times = ((torch.arange(DRAWS) + torch.rand(DRAWS, generator=generator)) * 1000 / DRAWS).long()
    images = torch.randperm(DRAWS, generator=generator) % 2
    noise = torch.randn(DRAWS, 4, 2, 2, generator=generator)
    learned, apart = objective.learned(), []
    for time, image, eps in zip(times.tolist(), images.tolist(), noise, strict=True):
        sigma = denoiser.sigmas[time][None]
        noised = (latents()[image] + sigma * eps)[None]
        context = prompts()[0].conditioning.context
        base = denoiser.predict(noised, sigma, prompts()[0].conditioning, Plan())
        hidden = denoiser.enter((noised / (sigma.square() + 1).sqrt()).flatten(2).transpose(1, 2))
        for number, site in enumerate(denoiser.base.sites):
            value = context.clone()
            value[0, 2] += learned.at(site)[time * 2 // 1000, 0]
            heads = [p.reshape(1, -1, 2, 3).transpose(1, 2) for p in (
                denoiser.q[number](hidden), denoiser.k[number](context), denoiser.v[number](value)
            )]  # fmt: skip
            attended = (heads[0] @ heads[1].transpose(2, 3) / math.sqrt(3)).softmax(-1) @ heads[2]
            hidden = hidden + attended.transpose(1, 2).flatten(2)
        own = denoiser.leave(hidden).transpose(1, 2).reshape(noised.shape)
        apart.append((own - base).square().mean().item())
    assert gauge.read() == pytest.approx(sum(apart) / len(apart), rel=1e-4)
    assert gauge.read() > 1e-4


@pytest.mark.parametrize("every", [1, 7, 10])
def test_gauges_are_read_as_often_as_their_share_allows(every):
    reads = []
    gauge = Gauge("drift", 13, lambda: float(len(reads) or reads.append(1) or 1))
    meter = Meter(lambda: torch.zeros(2), [gauge], step_passes=12, validation_passes=0.1)
    for step in range(every, 400, every):
        reading = meter.take(step, torch.zeros(2))
        assert meter.cost(step) <= SHARE or not reading.values
    taken = [reading.step for reading in meter.readings if reading.values]
    allowed = SHARE * 12 * 400 / 13
    assert 0.5 * allowed < len(taken) <= allowed
    assert len(meter.readings) == len(range(every, 400, every))


@pytest.mark.parametrize("changed", [{}, {"replace_maps": False}, {"accumulation": 2}])
def test_the_passes_that_are_counted_are_those_that_are_made(changed):
    denoiser = Counting()
    _, trainer, record = run_of(denoiser, replace(SETTINGS, batch_size=10, validation_draws=5, **changed))
    training = measuring = 0.0
    rows = 0.0
    for report in trainer.run():
        stepped = denoiser.rows - rows
        validation = 0.0 if report.validation_loss is None else _cost_of(denoiser, trainer.validation_loss)
        training += stepped - validation
        before = denoiser.rows
        record.add(report, None, trainer.validated)
        measuring += denoiser.rows - before + validation
        rows = denoiser.rows
    meter = record.meter
    assert training == pytest.approx(meter.step_passes * SETTINGS.steps, rel=0.03)
    assert measuring == pytest.approx(meter.spent, rel=0.1)
    assert measuring <= SHARE * training
    assert any(reading.values for reading in meter.readings)


def _cost_of(denoiser, make):
    before = denoiser.rows
    make()
    cost, denoiser.rows = denoiser.rows - before, before
    return cost


def test_measuring_changes_nothing_that_is_learned():
    _, plain, _ = run_of(ToyDenoiser())
    objective, trainer, record = run_of(ToyDenoiser())
    list(plain.run())
    for report in trainer.run():
        record.add(report, None, trainer.validated)
    assert len(record.meter.readings) == 4
    assert all(torch.equal(t, plain.learned().tensors[n]) for n, t in objective.learned().tensors.items())


def test_a_resumed_run_measures_what_an_uninterrupted_one_does():
    _, trainer, whole = run_of(ToyDenoiser())
    state = told = None
    for report in trainer.run():
        whole.add(report, None, trainer.validated)
        if report.step == 23:
            state, told = trainer.state(), json.loads(json.dumps(whole.course()))
    _objective, trainer, record = run_of(ToyDenoiser())
    trainer.resume(state)
    record.restore(told)
    for report in trainer.run():
        record.add(report, None, trainer.validated)
    assert json.dumps(record.course()) == json.dumps(whole.course())


def test_what_ends_a_run_and_what_is_kept_are_the_users_choice():
    _objective, _trainer, record = run_of(ToyDenoiser())
    record.meter.rule = StopRule(late_gain=0.9, patience=1)
    record.meter._base = [1.0] * 6
    record.validation = [(10, 0.5), (20, 0.4), (30, 0.45)]
    assert record.rests(Finish("plateau"))
    assert not record.rests(Finish("never", "best"))
    assert record.taken(Finish("never", "best"), 35) == 20
    assert record.taken(Finish("plateau", "last"), 35) == 35
    assert RunRecord(SETTINGS, 2, 8).taken(Finish("plateau", "best"), 35) == 35
    assert not RunRecord(SETTINGS, 2, 8, validation=record.validation).rests(Finish("plateau"))
