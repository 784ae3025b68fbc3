"""What training is said to take before it begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.training.engine import Trainer, sum_of_means
from infusion_core.training.footprint import Footprint, Live, footprint
from infusion_core.training.joint import JointObjective, joint_trainer
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualObjective, ResidualSettings

from .toy import PARTS, ToyDenoiser, latents, prompts

SETTINGS = ResidualSettings(steps=3, batch_size=4, parts=PARTS, learning_rate=0.05, snapshot_every=3)


def objective(settings=SETTINGS, denoiser=None, word="cat"):
    return ResidualObjective(denoiser or ToyDenoiser(), latents(), prompts(), word, settings)


def test_what_is_alive_at_once_is_counted():
    with Live() as live:
        one = torch.zeros(1000)  # 4000 bytes
        view = one[:10].reshape(2, 5)
        other = one * 2
        assert (live.now, live.most) == (8000, 8000)
        del one, view
        assert live.now == 4000
        other = torch.cat([other, other])  # both are there for a moment
    assert (live.now, live.most) == (8000, 12000)
    del other
    assert live.now == 0


def test_the_footprint_grows_with_the_batch_and_not_with_accumulation():
    found = {size: footprint_of(replace(SETTINGS, batch_size=size)) for size in (4, 8, 16)}
    assert [found[size].batch for size in found] == [4, 8, 16]
    first, second = found[8].step - found[4].step, found[16].step - found[8].step
    assert first > 0
    assert second == pytest.approx(2 * first, rel=0.05)
    more = footprint_of(replace(SETTINGS, accumulation=3))
    numbers = sum(tensor.nbytes for group in objective().groups() for tensor in group.tensors.values())
    assert found[4].learned == 2 * numbers
    assert (more.step, more.learned) == (found[4].step, 3 * numbers)


def footprint_of(settings):
    denoiser = ToyDenoiser()
    found = footprint(Trainer(objective(settings, denoiser), settings), denoiser, 7)
    assert found is not None
    assert found.weights == 7
    return found


@pytest.mark.parametrize("changed", [{}, {"restraint": RESTRAINED}, {"layout": "value"}])
def test_the_run_is_the_one_it_would_have_been(changed):
    settings = replace(SETTINGS, **changed)
    plain = Trainer(objective(settings), settings)
    list(plain.run())
    denoiser = ToyDenoiser()
    watched = Trainer(objective(settings, denoiser), settings)
    assert footprint(watched, denoiser, 0) is not None
    assert "predict" not in vars(denoiser)
    list(watched.run())
    for name, tensor in plain.learned().tensors.items():
        assert torch.equal(watched.learned().tensors[name], tensor)


def test_the_indicator_has_seen_nothing():
    settings = replace(SETTINGS, restraint=RESTRAINED)
    denoiser = ToyDenoiser()
    trainer = Trainer(objective(settings, denoiser), settings)
    list(zip(range(2), trainer.run(), strict=False))
    before = {name: tensor.clone() for name, tensor in trainer.objective.extra_state().items()}
    assert any(tensor.abs().max() > 0 for tensor in before.values())
    footprint(trainer, denoiser, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.objective.extra_state().items())


@pytest.mark.parametrize("changed", [{}, {"restraint": RESTRAINED}, {"layout": "parts"}, {"replace_maps": False}])
def test_a_step_that_is_walked_through_takes_what_a_real_one_takes(changed):
    settings = replace(SETTINGS, batch_size=32, **changed)
    denoiser = ToyDenoiser()
    trainer = Trainer(objective(settings, denoiser), settings)
    tensors = [tensor for group in trainer.objective.groups() for tensor in group.tensors.values()]
    with Live() as live:
        losses = trainer.objective.losses(torch.Generator().manual_seed(0))
        torch.autograd.grad(sum_of_means(losses), tensors, allow_unused=True)
    assert footprint(trainer, denoiser, 0).step == pytest.approx(live.most, rel=0.01)


def test_nothing_is_computed():
    denoiser, seen = ToyDenoiser(), []
    denoiser.leave.register_forward_hook(lambda _, given, output: seen.append(type(output).__name__))
    footprint(Trainer(objective(denoiser=denoiser), SETTINGS), denoiser, 0)
    assert set(seen) == {"FakeTensor"}


def test_concepts_that_share_a_run_take_what_all_of_them_take():
    denoiser = ToyDenoiser()
    alone = footprint_of(replace(SETTINGS, batch_size=3 * SETTINGS.batch_size))
    trainer = joint_trainer([objective(denoiser=denoiser, word=word) for word in ("cat", "dog", "cow")])
    assert isinstance(trainer.objective, JointObjective)
    found = footprint(trainer, denoiser, 0)
    assert found.batch == alone.batch
    assert found.learned == 3 * alone.learned
    assert found.step == pytest.approx(alone.step, rel=0.15)


def test_a_network_that_cannot_be_walked_through_is_trained_all_the_same():
    denoiser = ToyDenoiser()
    denoiser.leave.register_forward_hook(lambda _, given, output: output * float(output.sum() > -1e9))
    trainer = Trainer(objective(denoiser=denoiser), SETTINGS)
    assert footprint(trainer, denoiser, 0) is None
    assert len(list(trainer.run())) == 3


def test_what_is_said():
    found = Footprint(weights=1_700_000_000, step=2_000_000_000, learned=100_000_000, batch=4)
    assert found.told() == "training takes about 3.80 GB of memory: 1.70 the model, 2.10 a step of batch 4"
    assert found.warning(2_100_000_000) is None
    said = found.warning(2_099_999_999)
    assert "2.10 GB and 2.10 GB are free" in said
    assert said.index("accumulation") < said.index("checkpointing") < said.index("resolution")
