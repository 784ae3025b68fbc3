from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infusion_core.attention import Maps, Plan
from infusion_core.denoiser import Conditioning
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_state, save_state
from infusion_core.residuals import infuse
from infusion_core.trainer import Trainer, TrainSettings

from .toy import ToyDenoiser, latents, prompts

SETTINGS = TrainSettings(steps=12, batch_size=3, snapshot_every=5, bins=2)


def train(settings=SETTINGS, **options):
    trainer = Trainer(ToyDenoiser(), latents(), prompts(), "cat", settings, **options)
    return trainer, list(trainer.run())


def equal(a, b):
    return all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors) and a.tensors.keys() == b.tensors.keys()


def test_the_loss_falls_and_only_residuals_change():
    denoiser = ToyDenoiser()
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    settings = replace(SETTINGS, steps=150, batch_size=32, learning_rate=0.02, validation_draws=500)
    trainer = Trainer(denoiser, latents(), prompts(), "cat", settings)
    start = trainer.validation_loss()
    reports = list(trainer.run())
    assert reports[-1].validation_loss < start - 1e-3
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert all(p.grad is None for p in denoiser.parameters())


def test_reports_count_steps_and_validate_at_snapshots_and_the_end():
    _, reports = train()
    assert [r.step for r in reports] == list(range(1, 13))
    assert [r.step for r in reports if r.validation_loss is not None] == [5, 10, 12]


@pytest.mark.parametrize("layout", ["block", "layer", "value"])
def test_one_step_is_adam_on_the_gradient_of_the_explicit_loss(layout):
    """Adam's first step moves every weight by lr against the sign of its gradient, here by finite differences."""
    settings = replace(SETTINGS, steps=1, layout=layout, bins=1, replace_maps=True)
    trainer = Trainer(ToyDenoiser(), latents(), prompts(), "cat", settings)
    next(trainer.run())
    moved = trainer.concept().tensors

    denoiser = ToyDenoiser().double()
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(2, (3,), generator=generator).tolist()
    texts = torch.randint(3, (3,), generator=generator).tolist()
    times = ((torch.arange(3) + torch.rand(3, generator=generator)) / 3 * 1000).long()
    eps = torch.randn(3, 4, 2, 2, generator=generator).double()
    z, sigma = latents()[picks].double(), denoiser.sigmas[times].double()
    noised = z + sigma.reshape(-1, 1, 1, 1) * eps
    conditioning = [prompts()[i].conditioning.context.double() for i in texts]

    def loss(tensors):
        whole = Conditioning(torch.cat(conditioning))
        maps: Maps = {}
        denoiser.predict(noised, sigma, whole, Plan(record=maps))
        concept = replace(trainer.concept(), tensors=tensors)
        infusion = infuse(concept, range(3), [((2,),)] * 3, [0] * 3)
        out = denoiser.predict(noised, sigma, whole, Plan(supply=maps, infusions=[infusion]))
        return (out - eps).square().mean().item()

    zero = {k: torch.zeros_like(v).double() for k, v in moved.items()}
    for name, tensor in moved.items():
        for entry in range(tensor.numel()):
            up, down = ({k: v.clone() for k, v in zero.items()} for _ in range(2))
            up[name].view(-1)[entry] += 1e-4
            down[name].view(-1)[entry] -= 1e-4
            slope = (loss(up) - loss(down)) / 2e-4
            if abs(slope) > 1e-5:
                step = -settings.learning_rate if slope > 0 else settings.learning_rate
                assert tensor.view(-1)[entry].item() == pytest.approx(step, rel=1e-2)


def test_a_resumed_run_repeats_bit_by_bit(tmp_path):
    whole, _ = train()
    first = Trainer(ToyDenoiser(), latents(), prompts(), "cat", SETTINGS)
    for report in first.run():
        if report.step == 7:
            break
    save_state(tmp_path / "state.safetensors", first.state())
    second, reports = train(state=load_state(tmp_path / "state.safetensors"))
    assert [r.step for r in reports] == [8, 9, 10, 11, 12]
    assert equal(second.concept(), whole.concept())


def test_accumulation_sees_as_many_samples_as_a_larger_batch():
    small, reports = train(replace(SETTINGS, accumulation=2, steps=3))
    assert len(reports) == 3
    assert not equal(small.concept(), train(replace(SETTINGS, steps=3))[0].concept())


def test_bins_learn_only_at_their_noise_levels():
    trainer = Trainer(ToyDenoiser(), latents(), prompts(), "cat", replace(SETTINGS, steps=1, batch_size=1, bins=2))
    next(trainer.run())
    changed = [(t != 0).any(dim=(1, 2)).tolist() for t in trainer.concept().tensors.values()]
    assert all(sum(c) == 1 for c in changed)


def test_training_goes_on_from_a_concept():
    first, _ = train()
    second = Trainer(ToyDenoiser(), latents(), prompts(), "cat", SETTINGS, start=first.concept())
    assert equal(second.concept(), first.concept())
    with pytest.raises(InfusionError, match="set the same layout"):
        Trainer(ToyDenoiser(), latents(), prompts(), "cat", replace(SETTINGS, bins=1), start=first.concept())


def test_a_state_of_another_layout_is_refused():
    first, _ = train()
    with pytest.raises(InfusionError, match="another layout"):
        train(replace(SETTINGS, layout="layer"), state=first.state())


def test_nan_stops_with_a_remedy():
    bad = latents()
    bad[:] = float("nan")
    with pytest.raises(InfusionError, match="lower the learning rate"):
        list(Trainer(ToyDenoiser(), bad, prompts(), "cat", SETTINGS).run())


@pytest.mark.parametrize("field", ["steps", "batch_size", "bins", "snapshot_every"])
def test_settings_out_of_range_are_named(field):
    with pytest.raises(InfusionError, match=field):
        TrainSettings(**{field: 0})


def test_no_images_and_no_word():
    with pytest.raises(InfusionError, match="no images"):
        Trainer(ToyDenoiser(), latents()[:0], prompts(), "cat", SETTINGS)
    with pytest.raises(InfusionError, match="does not hold the word 'cat'"):
        Trainer(ToyDenoiser(), latents(), prompts(spans=()), "cat", SETTINGS)
