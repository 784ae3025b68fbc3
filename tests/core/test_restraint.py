"""Overfitting of a concept: measured it changes nothing, restrained it does what the indicator says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.denoiser import stack
from infusion_core.noise import seeded, stratified_times
from infusion_core.training.engine import Trainer
from infusion_core.training.objective import loss_weights
from infusion_core.training.overfitting import MEASURED, OVERFITTING, RESTRAINED, UNRESTRAINED, Restraint
from infusion_core.training.residual import ResidualObjective, ResidualSettings

from .toy import ToyDenoiser, latents, prompts

SETTINGS = ResidualSettings(steps=6, batch_size=8, snapshot_every=10, learning_rate=0.05, seed=4)


def objective(restraint, **changed):
    shown = changed.pop("shown", latents())
    masks = changed.pop("masks", None)
    settings = replace(SETTINGS, restraint=restraint, **changed)
    return ResidualObjective(ToyDenoiser(), shown, prompts(), "cat", settings, masks=masks)


def trained(made, state=None, stop=None):
    trainer = Trainer(made, made.settings, state)
    losses = []
    for report in trainer.run():
        losses.append(report.loss)
        if report.step == stop:
            break
    return trainer, losses


def same(one, other):
    return all(torch.equal(tensor, other.learned().tensors[name]) for name, tensor in one.learned().tensors.items())


def test_users_choose_by_name():
    assert OVERFITTING == {"ignored": UNRESTRAINED, "measured": MEASURED, "restrained": RESTRAINED}
    assert not UNRESTRAINED.measures
    assert MEASURED.measures
    assert not MEASURED.augment
    assert not MEASURED.reweight
    assert RESTRAINED.augment
    assert RESTRAINED.reweight


@pytest.mark.parametrize("replace_maps", [True, False])
def test_measuring_changes_nothing_and_says_what_the_base_model_errs_more(replace_maps):
    """With replaced maps at part of the noise levels, and never."""
    plain, losses = trained(objective(UNRESTRAINED, replace_maps=replace_maps))
    measured, seen = trained(objective(replace(MEASURED, bins=3, temperature=5.0), replace_maps=replace_maps))
    assert losses == seen
    assert same(plain, measured)
    assert plain.state().extra == {}

    made = measured.objective
    before = made.indicator.state()
    generator = seeded(33)
    found = made.losses(generator)["denoising"]
    generator = seeded(33)
    images = torch.randint(2, (8,), generator=generator)
    captions = torch.randint(3, (8,), generator=generator).tolist()
    times = stratified_times(8, 1000, generator)
    eps = torch.randn(8, 4, 2, 2, generator=generator)
    denoiser = made.denoiser
    sigma = denoiser.sigmas[times]
    noised = latents()[images] + sigma.reshape(-1, 1, 1, 1) * eps
    with torch.no_grad():
        said = denoiser.predict(noised, sigma, stack([made.prompts[i].conditioning for i in captions]), Plan())
    reference = (said - eps).square().mean((1, 2, 3))
    own = found.detach() / loss_weights("velocity", denoiser.sigmas)[times]
    after = made.indicator.state()
    for row, bin_ in enumerate((times * 3 // 1000).tolist()):
        for name, values in (("reference_loss", reference), ("trained_loss", own)):
            before[name][bin_] += 0.1 * (values[row].double() - before[name][bin_])
    torch.testing.assert_close(after["reference_loss"], before["reference_loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after["trained_loss"], before["trained_loss"], rtol=1e-4, atol=1e-5)
    assert (reference - own).abs().min() > 1e-5


def known_by_heart(made):
    bins = made.indicator.restraint.bins
    made.indicator.restore({
        "reference_loss": torch.full((bins,), 9.0).double(), "trained_loss": torch.zeros(bins).double(),
        "seen": torch.ones(bins).long(),
    })  # fmt: skip


def test_what_is_known_by_heart_is_learned_less_and_shown_otherwise():
    variants = torch.stack([latents(), latents() + 50], 1)
    masks = torch.ones(2, 2, 1, 2, 2)
    masks[:, 1, :, :, 0] = 0
    masks[:, 1, :, :, 1] = 2
    reweighted = objective(Restraint(reweight=True), shown=variants, masks=masks)
    known_by_heart(reweighted)
    assert reweighted.losses(seeded(1))["denoising"].abs().max() == 0
    shown = objective(Restraint(augment=True, most_augmented=1.0), shown=variants, masks=masks)
    plain = shown.losses(seeded(1))["denoising"]  # nothing is known by heart yet
    assert torch.equal(plain, objective(UNRESTRAINED).losses(seeded(1))["denoising"])
    known_by_heart(shown)
    other = shown.losses(seeded(1))["denoising"]
    only = objective(UNRESTRAINED, shown=variants[:, 1:], masks=masks[:, 1:]).losses(seeded(1))["denoising"]
    torch.testing.assert_close(other, only, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other, plain, rtol=1e-2)
    validation = shown.validation(6, 3)
    torch.testing.assert_close(validation, objective(UNRESTRAINED).validation(6, 3))  # on photos as they are


def test_a_variant_of_which_nothing_counts_is_not_shown():
    variants, masks = torch.stack([latents(), latents() + 50], 1), torch.ones(2, 2, 1, 2, 2)
    masks[:, 1] = 0
    shown = objective(Restraint(augment=True, most_augmented=1.0), shown=variants, masks=masks)
    known_by_heart(shown)
    assert torch.equal(shown.losses(seeded(1))["denoising"], objective(UNRESTRAINED).losses(seeded(1))["denoising"])


def test_a_resumed_run_is_the_uninterrupted_one():
    restraint, shown = replace(RESTRAINED, temperature=3.0), torch.stack([latents(), -latents(), latents() / 2], 1)
    whole, losses = trained(objective(restraint, shown=shown))
    first, _ = trained(objective(restraint, shown=shown), stop=3)
    rest, later = trained(objective(restraint, shown=shown), state=first.state())
    assert later == losses[3:]
    assert same(whole, rest)
    assert torch.equal(whole.objective.indicator.gamma, rest.objective.indicator.gamma)
    assert whole.objective.indicator.gamma.max() > 0
    assert not same(whole, trained(objective(UNRESTRAINED, shown=shown))[0])
