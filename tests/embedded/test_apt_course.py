"""The course of a restrained training: resumed, augmented, with text encoders and class pictures, with bad input."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from infusion_core.attention import Plan
from infusion_core.embedded.lora import apt_trainer, captions_for
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.lora import UP
from infusion_core.noise import input_scale, seeded
from infusion_core.training.apt import AptObjective, AptSettings
from infusion_core.training.overfitting import REFERENCE, SEEN, TRAINED, Restraint
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.shown import Shown

from .apt import CAPTIONS, SETTINGS, draws, latents, lora_of, objective, texts, trained

ALL_ON = replace(
    SETTINGS, steps=6, stabilisation=0.1, alignment=0.1, accumulation=2,
    restraint=Restraint(augment=True, most_augmented=1.0, reweight=True, temperature=50.0),
)  # fmt: skip


@pytest.fixture
def model(sharp):
    return sharp


def test_a_resumed_run_is_the_uninterrupted_one(model):
    shown = Shown(latents(2, 3), captions_for(model.text, CAPTIONS, False))
    whole, reports = trained(objective(model, ALL_ON, shown), ALL_ON)
    first, _ = trained(objective(model, ALL_ON, shown), ALL_ON, stop=3)
    rest, later = trained(objective(model, ALL_ON, shown), ALL_ON, state=first.state())
    assert [r.loss for r in later] == [r.loss for r in reports[3:]]
    assert all(torch.equal(tensor, whole.learned()[name]) for name, tensor in rest.learned().items())
    assert torch.equal(rest.objective.indicator.gamma, whole.objective.indicator.gamma)
    assert whole.objective.indicator.gamma.max() > 0


def known_by_heart(made):
    made.restore({REFERENCE: torch.ones(10).double(), TRAINED: torch.zeros(10).double(), SEEN: torch.ones(10).long()})


def test_photos_known_by_heart_are_shown_as_variants_without_their_canvas(model):
    """With gamma 1 everywhere each row shows a variant; only what its mask weighs counts."""
    pictures = latents(2, 2)
    masks = torch.ones(2, 3, 1, 8, 8)
    masks[:, 1:, :, :, :4] = 0
    masks[:, 1:, :, :, 4:] = 2
    shown = Shown(pictures, captions_for(model.text, CAPTIONS, False), masks)
    settings = replace(SETTINGS, restraint=Restraint(augment=True, most_augmented=1.0), batch_size=4)
    seen = []

    class Spy(type(model.denoiser)):
        def predict(self, noised, sigma, conditioning, plan):
            seen.append(noised)
            return super().predict(noised, sigma, conditioning, plan)

    spied = deepcopy(model.denoiser)
    spied.__class__ = Spy
    made = AptObjective(spied, lora_of(model, settings), shown, settings)
    known_by_heart(made)
    found = made.losses(seeded(2))["denoising"]
    rows, captions, times, eps = draws(seeded(2), 2, settings)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])  # the same for both nets
    clean = seen[0] - model.denoiser.sigmas[times].reshape(-1, 1, 1, 1) * eps
    for row, latent in enumerate(clean):
        near = [(latent - pictures[rows[row], variant]).abs().max() for variant in range(3)]
        assert min(near[1:]) < 1e-3 < near[0]
    said = model.denoiser.predict(seen[0], model.denoiser.sigmas[times], shown.captions(captions), Plan())
    torch.testing.assert_close(found, (said - eps).square()[..., 4:].mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    made = AptObjective(
        spied, lora_of(model, settings), shown, replace(settings, restraint=Restraint(augment=True, most_augmented=0.0))
    )
    known_by_heart(made)
    made.losses(seeded(2))
    clean = seen[-1] - model.denoiser.sigmas[times].reshape(-1, 1, 1, 1) * eps
    torch.testing.assert_close(clean, pictures[rows, 0], rtol=1e-3, atol=1e-3)


def test_text_encoders_learn_at_their_own_rate_and_the_frozen_model_reads_with_its_own(model, monkeypatch):
    settings = replace(SETTINGS, text_rate=0.5, restraint=Restraint(measure=True))
    made = objective(model, settings)
    unet, text = made.groups()
    assert (unet.rate, text.rate) == (1.0, 0.5)
    assert {name.split("_")[1] for name in unet.tensors} == {"unet"}
    assert {name.split("_")[1] for name in text.tensors} == {"te"}
    assert len(text.tensors) == 2 * 2 * 6  # two layers, six projections
    before = texts(model, [0, 1])
    trainer, _ = trained(made, settings)
    assert all(not torch.equal(t, lora_of(model, settings).tensors[n]) for n, t in trainer.learned().items() if UP in n)
    with made.lora.installed():
        changed = texts(model, [0, 1])
        with made.lora.off():
            assert torch.equal(texts(model, [0, 1]), before)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(texts(model, [0, 1]), before)
    read, predict = [], model.denoiser.predict

    def noted(noised, sigma, conditioning, plan):
        read.append(conditioning.context.detach())
        return predict(noised, sigma, conditioning, plan)

    monkeypatch.setattr(model.denoiser, "predict", noted)
    with made.lora.installed():
        made.losses(seeded(5))
        captions = draws(seeded(5), 2, settings)[1]
        own = texts(model, captions)
    for found, wanted in zip(read, (texts(model, captions), own), strict=True):  # the frozen model's pass is the first
        torch.testing.assert_close(found, wanted.detach())


def test_pictures_of_the_class_have_a_loss_of_their_own(model):
    prior = Shown(latents(3, 0, seed=9), captions_for(model.text, CAPTIONS, False))
    settings = replace(SETTINGS, prior_weight=0.25)
    made = objective(model, settings, prior=prior)
    with made.lora.installed():
        found = made.losses(seeded(4))
    generator = seeded(4)
    alone = []
    for pictures in (latents(), prior.latents):
        rows, captions, times, eps = draws(generator, len(pictures), settings)
        sigma = model.denoiser.sigmas[times]
        noised = pictures[rows, 0] + sigma.reshape(-1, 1, 1, 1) * eps
        said = model.denoiser.unet(
            noised * input_scale(sigma).reshape(-1, 1, 1, 1), times, texts(model, captions)
        ).sample
        alone.append((said - eps).square().mean((1, 2, 3)))
    torch.testing.assert_close(found["denoising"], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["prior"], 0.25 * alone[1], rtol=1e-4, atol=1e-5)
    assert "prior" not in objective(model, replace(settings, prior_weight=0.0), prior=prior).losses(seeded(4))


def test_a_trainer_makes_variants_of_photos_and_masks_their_canvas(model):
    photos = [Image.new("RGB", (40, 30), colour) for colour in ("white", "red")]
    trainer = apt_trainer(model, photos, CAPTIONS, replace(ALL_ON, steps=1))
    shown = trainer.objective.shown
    assert shown.latents.shape[:2] == (2, 13)
    assert shown.masks.shape == (2, 13, 1, 8, 8)
    assert (shown.masks[:, 0] == 1).all()
    assert (shown.masks[:, 1:] == 0).any(-1).any(-1).all()
    torch.testing.assert_close(shown.latents[:, 0], model.encode(photos))
    assert apt_trainer(model, photos, CAPTIONS, SETTINGS).objective.shown.latents.shape[1] == 1


@pytest.mark.parametrize("live", [False, True])
def test_captions_of_a_batch_have_one_length(model, live):
    long = "a dog " * 60
    captions = captions_for(model.text, (*CAPTIONS, long), live)
    assert len(captions) == 3
    read = captions([2, 0, 2]).context
    chunks = model.text.chunks_of(model.text.encode(long))
    assert chunks > 1
    wanted = [model.text.encode(text, chunks=chunks).conditioning.context for text in (long, CAPTIONS[0], long)]
    torch.testing.assert_close(read, torch.cat(wanted))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stabilised": ("sideways",)}, "no block or layer 'sideways'"),
        ({"alignment": -1.0}, "alignment must be"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"text_rate": -1.0}, "text_rate must be"),
    ],
)
def test_bad_settings_are_named(model, settings, message):
    with pytest.raises(InfusionError, match=message):
        objective(model, replace(SETTINGS, **settings))


def test_nothing_to_learn_from_is_said(model):
    with pytest.raises(InfusionError, match="no photos"):
        apt_trainer(model, [], CAPTIONS, SETTINGS)
    with pytest.raises(InfusionError, match="no captions"):
        apt_trainer(model, [Image.new("RGB", (9, 9))], (), SETTINGS)


@pytest.mark.parametrize(("chosen", "expected"), [(None, 75.0), (30.0, 30.0)])
def test_the_temperature_is_the_models_own_unless_one_is_chosen(tinyworld, chosen, expected):
    photos = [Image.new("RGB", (128, 128), "red")]
    settings = replace(SETTINGS, restraint=Restraint(measure=True, temperature=chosen))
    made = apt_trainer(tinyworld, photos, ("a circle",), settings).objective
    concept = trainer_for(tinyworld, photos, "circle", ResidualSettings(restraint=settings.restraint)).objective
    for objective_ in (made, concept):
        objective_.indicator.update(torch.tensor([0]), torch.tensor([0.05]), torch.tensor([0.04]))
        assert float(objective_.indicator.gamma[0]) == pytest.approx(1 - math.exp(-expected * 0.01), rel=1e-5)
    sd = AptSettings(restraint=Restraint(measure=True))
    assert AptObjective(tinyworld.denoiser, made.lora, made.shown, sd).indicator.restraint.temperature is None
