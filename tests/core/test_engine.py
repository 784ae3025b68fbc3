"""The one training loop: reports, snapshots, resuming, and what it says when numbers run away."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from infusion_core.errors import InfusionError
from infusion_core.noise import seeded
from infusion_core.residual_file import save_concept
from infusion_core.schedule import rate_at
from infusion_core.training.engine import Trainer, sum_of_means
from infusion_core.training.objective import ParameterGroup
from infusion_core.training.residual import ResidualSettings, residual_trainer
from infusion_core.training.settings import TrainSettings
from infusion_core.training.state import TrainState, load_state, save_state

from .toy import ToyDenoiser, latents, prompts

SETTINGS = ResidualSettings(steps=12, batch_size=3, snapshot_every=5, bins=2)


def trainer_of(settings=SETTINGS, denoiser=None, **options):
    return residual_trainer(denoiser or ToyDenoiser(), latents(), prompts(), "cat", settings, **options)


def train(settings=SETTINGS, **options):
    trainer = trainer_of(settings, **options)
    return trainer, list(trainer.run())


def equal(a, b):
    return all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors) and a.tensors.keys() == b.tensors.keys()


def test_the_loss_falls_and_only_residuals_change():
    denoiser = ToyDenoiser()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    settings = replace(SETTINGS, steps=150, batch_size=32, learning_rate=0.02, validation_draws=500)
    trainer = trainer_of(settings, denoiser)
    start = trainer.validation_loss()
    reports = list(trainer.run())
    assert reports[-1].validation_loss < start - 1e-3
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert all(p.grad is None for p in denoiser.parameters())


def test_reports_count_steps_and_validate_at_snapshots_and_the_end():
    trainer, reports = train()
    assert [(r.step, r.steps) for r in reports] == [(i, 12) for i in range(1, 13)]
    assert [r.step for r in reports if r.validation_loss is not None] == [5, 10, 12]
    assert reports[-1].validation_loss == trainer.validation_loss()
    wanted = [rate_at(i, 12, SETTINGS.learning_rate, "cosine") for i in range(12)]
    assert [r.learning_rate for r in reports] == wanted


def test_rates_fall_along_a_cosine_to_a_tenth():
    assert [rate_at(i, 5, 2.0, "constant") for i in range(5)] == [2.0] * 5
    found = [rate_at(i, 5, 2.0, "cosine") for i in range(5)]
    assert found == pytest.approx([2.0, 0.2 + 1.8 * (0.5 + 8**-0.5), 1.1, 0.2 + 1.8 * (0.5 - 8**-0.5), 0.2])
    assert rate_at(0, 1, 2.0, "cosine") == 2.0
    assert [rate_at(i, 2, 2.0, "cosine") for i in range(2)] == pytest.approx([2.0, 0.2])


def test_rates_rise_in_a_straight_line_to_the_schedules():
    assert [rate_at(i, 5, 2.0, "constant", 4) for i in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    plain = [rate_at(i, 5, 2.0, "cosine") for i in range(5)]
    found = [rate_at(i, 5, 2.0, "cosine", 2) for i in range(5)]
    assert found == pytest.approx([plain[0] / 2, *plain[1:]])


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, accumulation=2, layout="value", weight_decay=0.1)])
def test_a_resumed_run_repeats_bit_by_bit(tmp_path, settings):
    whole, all_reports = train(settings)
    first = trainer_of(settings)
    for report in first.run():
        if report.step == 7:
            break
    save_state(tmp_path / "state.safetensors", first.state())
    second, reports = train(settings, state=load_state(tmp_path / "state.safetensors"))
    assert reports == all_reports[7:]
    assert equal(second.learned(), whole.learned())


def test_the_trainer_passes_word_masks_and_start_on():
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]] * 2)
    one, _ = train(replace(SETTINGS, steps=1), masks=masks)
    assert one.learned().word == "cat"
    assert not equal(one.learned(), train(replace(SETTINGS, steps=1))[0].learned())


def test_a_name_may_hold_a_slash(tmp_path):
    state = TrainState(3, {"a/b": torch.ones(2)}, {}, {}, {}, {"c/d/e": torch.zeros(1)})
    save_state(tmp_path / "state", state)
    read = load_state(tmp_path / "state")
    assert (read.step, list(read.parameters), list(read.extra)) == (3, ["a/b"], ["c/d/e"])


def test_a_parameter_that_never_had_a_gradient_has_no_moments():
    class Lazy(Quadratic):
        def losses(self, generator):
            return {"near": (self.fast - 3).square().repeat(2)}

    first = Trainer(Lazy(), FREE)
    next(first.run())
    state = first.state()
    assert (list(state.parameters), list(state.mean)) == (["fast", "slow"], ["fast"])
    second = Trainer(Lazy(), FREE, state)
    list(second.run())
    list(first.run())
    assert second.learned() == first.learned()


def test_bins_learn_only_at_their_noise_levels():
    trainer = trainer_of(replace(SETTINGS, steps=1, batch_size=1, bins=2))
    next(trainer.run())
    changed = [(t != 0).any(dim=(1, 2)).tolist() for t in trainer.learned().tensors.values()]
    assert all(sum(c) == 1 for c in changed)


def test_training_goes_on_from_a_concept():
    first, _ = train()
    assert equal(trainer_of(start=first.learned()).learned(), first.learned())
    with pytest.raises(InfusionError, match="set the same layout"):
        trainer_of(replace(SETTINGS, bins=1), start=first.learned())


def test_a_state_of_another_layout_is_refused(tmp_path):
    first, _ = train()
    with pytest.raises(InfusionError, match=r"^the saved training state is of another layout or model; start without"):
        train(replace(SETTINGS, layout="block"), state=first.state())
    (tmp_path / "x").write_bytes(b"nothing")
    save_concept(tmp_path / "concept", first.learned())
    for path in (tmp_path / "x", tmp_path / "gone", tmp_path / "concept"):
        with pytest.raises(InfusionError, match="not a training state Infusion can read"):
            load_state(path)


class Quadratic:
    """Two numbers drawn to targets, one at a tenth of the rate; a spoilt loss or gradient on demand."""

    def __init__(self, spoil=None, at=0):
        self.fast, self.slow = (torch.zeros(1, requires_grad=True) for _ in range(2))
        self.spoil, self.at, self.count = spoil, at, 0

    def groups(self):
        return [ParameterGroup({"fast": self.fast}), ParameterGroup({"slow": self.slow}, rate=0.1, weight_decay=0.5)]

    def losses(self, generator):
        distance = (self.fast - 3).square() + (self.slow - 3).square()
        if self.count == self.at and self.spoil == "loss":
            distance = distance * float("nan")
        if self.count == self.at and self.spoil == "gradient":
            distance = distance + (distance.detach() * 0 + self.fast * 0).abs().sqrt()  # 0, of infinite slope
        return {"near": distance.repeat(2), "noise": torch.rand(3, generator=generator)}

    def validation(self, draws, seed):
        return torch.full((draws,), float(seed))

    def after_step(self):
        self.count += 1

    def learned(self):
        return float(self.fast.detach()), float(self.slow.detach()), self.count

    def extra_state(self):
        return {"count": torch.tensor(self.count)}

    def restore(self, extra):
        self.count = int(extra["count"])


FREE = TrainSettings(steps=3, learning_rate=0.5, snapshot_every=2)


def test_groups_have_rates_and_weight_decay_of_their_own():
    trainer = Trainer(Quadratic(), FREE)
    reports = list(trainer.run())
    torch_fast, torch_slow = (torch.zeros(1, requires_grad=True) for _ in range(2))
    fast = {"params": [torch_fast], "lr": 0.5, "weight_decay": 0.0}
    theirs = torch.optim.AdamW([fast, {"params": [torch_slow], "lr": 0.05, "weight_decay": 0.5}])
    for _ in range(3):
        theirs.zero_grad()
        ((torch_fast - 3).square() + (torch_slow - 3).square()).backward()
        theirs.step()
    assert trainer.learned() == pytest.approx((torch_fast.item(), torch_slow.item(), 3))
    assert all(r.validation_loss is None for r in reports)  # no draws, no validation


def test_out_of_memory_says_what_needs_less_and_stays_of_its_kind():
    """Hosts unload models on that kind of error."""

    class Large(Quadratic):
        def losses(self, generator):
            if self.count == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().losses(generator)

    trainer = Trainer(Large(), FREE)
    with pytest.raises(torch.cuda.OutOfMemoryError) as ended:
        list(trainer.run())
    told = str(ended.value)
    assert told.startswith("out of memory in step 2.")
    assert told.index("accumulation") < told.index("checkpointing") < told.index("resolution")
    assert trainer.step == 1  # what was learned before is there
    assert trainer.learned()[2] == 1


def test_every_loss_counts_by_its_mean():
    losses = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0])}
    assert sum_of_means(losses).item() == 7.0
    first = next(Trainer(Quadratic(), FREE).run())
    noise = torch.rand(3, generator=torch.Generator().manual_seed(0)).mean().item()
    assert first.loss == pytest.approx(18 + noise)


def test_steps_are_drawn_from_seed_and_number():
    def noise(settings):
        return [r.loss for r in Trainer(Still(), settings).run()]

    class Still(Quadratic):
        def losses(self, generator):
            return {"noise": torch.rand(3, generator=generator) + 0 * self.fast}

    def expected(number):
        return torch.rand(3, generator=torch.Generator().manual_seed(number)).mean().item()

    assert noise(replace(FREE, seed=2)) == pytest.approx([expected(2 * 1_000_003 + i) for i in range(3)])
    assert noise(replace(FREE, seed=2, first_step=1)) == pytest.approx([expected(2 * 1_000_003 + i) for i in (1, 2, 3)])
    kept = Trainer(Quadratic(), replace(FREE, validation_draws=2, seed=2))
    assert kept.validation_loss() == pytest.approx(2 * 1_000_003 + 999_331)


def test_gradients_are_clipped_to_their_norm_together():
    trainer = Trainer(Quadratic(), replace(FREE, clip_norm=0.5))
    next(trainer.run())
    gradient = {name: mean.item() * 10 for name, mean in trainer.state().mean.items()}
    assert math.hypot(*gradient.values()) == pytest.approx(0.5, rel=1e-4)
    assert gradient["fast"] == pytest.approx(gradient["slow"])


def test_moments_come_back_in_the_parameters_precision():
    first = Trainer(Quadratic(), FREE)
    next(first.run())
    state = first.state()
    wide = replace(state, mean={k: v.double() for k, v in state.mean.items()},
                   square={k: v.double() for k, v in state.square.items()},
                   count={k: v.double() for k, v in state.count.items()})  # fmt: skip
    second = Trainer(Quadratic(), FREE, wide)
    list(second.run())
    list(first.run())
    assert second.learned() == first.learned()
    again = second.state()
    assert {t.dtype for part in (again.mean, again.square, again.count) for t in part.values()} == {torch.float32}


def test_an_objectives_own_state_is_resumed(tmp_path):
    first = Trainer(Quadratic(), FREE)
    next(first.run())
    save_state(tmp_path / "state.safetensors", first.state())
    second = Trainer(Quadratic(), FREE, load_state(tmp_path / "state.safetensors"))
    assert second.step == 1
    list(second.run())
    list(first.run())
    assert second.learned() == first.learned()


@pytest.mark.parametrize(
    ("spoil", "at", "message"),
    [
        (
            "loss",
            0,
            "the loss is nan at step 1; nothing has been learned yet, so the model itself gives it on these pictures: "
            "check that it draws pictures, and run it in bfloat16 or full precision if half precision overflows",
        ),
        ("loss", 1, "the loss is nan at step 2; lower the learning rate"),
        (
            "gradient",
            0,
            "the gradient is not finite at step 1, though the loss is; half precision overflows in this model: run it "
            "in bfloat16 or full precision",
        ),
    ],
)
def test_runaway_numbers_stop_with_the_right_remedy(spoil, at, message):
    trainer = Trainer(Quadratic(spoil, at), FREE)
    with pytest.raises(InfusionError, match=f"^{re.escape(message)}$"):
        list(trainer.run())
    assert all(math.isfinite(n) for n in trainer.learned())  # nothing is spoilt by the step that failed


def test_a_resumed_run_does_not_blame_the_model():
    first = Trainer(Quadratic(), FREE)
    next(first.run())
    resumed = Trainer(Quadratic("loss", 1), FREE, first.state())
    with pytest.raises(InfusionError, match="at step 2; lower the learning rate"):
        list(resumed.run())


@pytest.mark.parametrize("field", ["steps", "batch_size", "bins", "snapshot_every", "accumulation", "validation_draws"])
def test_settings_out_of_range_are_named(field):
    with pytest.raises(InfusionError, match=f"{field} must be at least 1, got 0"):
        ResidualSettings(**{field: 0})


@pytest.mark.parametrize("field", ["steps", "batch_size", "bins", "snapshot_every", "accumulation", "validation_draws"])
def test_settings_that_nothing_could_hold_are_named(field):
    with pytest.raises(InfusionError, match=rf"{field} must be at most \d+, got 1000000000$"):
        ResidualSettings(**{field: 10**9})


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_is_one_of_the_generators(seed):
    with pytest.raises(InfusionError, match=f"the seed must be 0 to {2**64 - 1}, got {seed}"):
        TrainSettings(seed=seed)


def test_the_last_seeds_have_choices_of_their_own():
    drawn = {torch.randn(1, generator=seeded(seed)).item() for seed in (0, 1, 2**64 - 1, 2**64 + 999_331)}
    assert len(drawn) == 4
    assert torch.equal(torch.randn(3, generator=seeded(7)), torch.randn(3, generator=torch.manual_seed(7)))
    assert list(Trainer(Quadratic(), replace(FREE, seed=2**64 - 1)).run())


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_learning_rate_is_a_positive_number(rate):
    with pytest.raises(InfusionError, match="learning rate must be a positive number"):
        TrainSettings(learning_rate=rate)


def test_a_run_has_as_many_snapshots_as_its_state_can_hold():
    with pytest.raises(InfusionError, match="20001 snapshots are more than the 10000 a run can have; raise snapshot_e"):
        TrainSettings(steps=20001, snapshot_every=1)
    assert TrainSettings(steps=20001, snapshot_every=3).snapshot_every == 3
