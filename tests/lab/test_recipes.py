"""What a recipe changes in training: the loss written out, the part that is trained, the rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from infusion_core.attention import Plan
from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.denoiser import Conditioning
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.studio import text_states

from .fast import method_of

RECIPES = {
    "published": {},
    "velocity": {"weighting": "velocity"},
    "stratified": {"times": "stratified"},
    "templates": {"captions": "templates"},
    "class word": {"naming": "class word"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_is_the_photos_mean_and_the_weighed_mean_of_class_pictures(recipe, studio, subjects):
    """By hand: each error from the network's own output, the batch from the generator in the order of the script."""
    changes = RECIPES[recipe]
    method = PUBLISHED["dreambooth"].method.changed(batch_size=3, prior_weight=0.4, **changes)
    objective, model = method.objective(studio, subjects, 0), studio.base
    got = objective.losses(torch.Generator().manual_seed(11))["denoising"].mean().item()

    generator = torch.Generator().manual_seed(11)
    photos, priors = model.encode(list(subjects[0].photos)), studio.class_latents("circle")
    templates = CAPTION_TEMPLATES if recipe == "templates" else ["a photo of a {}"]
    rows, captions = [], []
    for _ in range(3):
        torch.randint(1, (), generator=generator)  # the subject
        rows.append(photos[torch.randint(len(photos), (), generator=generator)])
        template = templates[torch.randint(len(templates), (), generator=generator)]
        captions.append(template.format("circle" if recipe == "class word" else "v1 circle"))
        rows.append(priors[torch.randint(len(priors), (), generator=generator)])
        captions.append("a photo of a circle")
    if recipe == "stratified":
        times = ((torch.arange(6) + torch.rand(6, generator=generator)) / 6 * 1000).long()
        times = times[torch.randperm(6, generator=generator)]
    else:
        times = torch.randint(1000, (6,), generator=generator)
    eps = torch.randn(6, *photos.shape[1:], generator=generator)
    weights = (1 + model.denoiser.sigmas.square()).clamp(max=8) if recipe == "velocity" else torch.ones(1000)
    errors = []
    for row, (latent, time) in enumerate(zip(rows, times, strict=True)):
        context = text_states(model, [captions[row]])
        sigma = model.denoiser.sigmas[time][None]
        out = model.denoiser.predict(latent[None] + sigma * eps[row], sigma, Conditioning(context), Plan())
        errors.append(((out[0] - eps[row]).square().mean() * weights[time] / weights.mean()).item())
    assert got == pytest.approx(np.mean(errors[::2]) + 0.4 * np.mean(errors[1::2]), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "part", "wanted"),
    [
        ("dreambooth-plain", "unet", {""}),
        ("dreambooth-plain", "attention", {"attn1", "attn2", "to_q", "to_k", "to_v", "to_out"}),
        ("custom-diffusion", "cross-attention", {"attn2", "to_q", "to_k", "to_v", "to_out"}),
        ("custom-diffusion", "keys and values", {"attn2", "to_k", "to_v"}),
        ("lora", "attention", {"attn1", "attn2", "to_q", "to_k", "to_v", "to_out"}),
        ("lora", "cross-attention", {"attn2", "to_q", "to_k", "to_v", "to_out"}),
        ("lora", "keys and values", {"attn2", "to_k", "to_v"}),
    ],
)
def test_the_part_that_is_trained(key, part, wanted, studio, subjects):
    """Of the UNet, exactly the parameters whose layer and projection are wanted, all of them, learn."""
    method = PUBLISHED[key].method.changed(part=part, rank=2)
    (group,) = method.objective(studio, subjects, 0).groups()
    every = [name for name, _ in studio.base.denoiser.unet.named_parameters()]
    layers = [{*name.split(".")} & {"attn1", "attn2"} for name in every]
    which = [{*name.split(".")} & {"to_q", "to_k", "to_v", "to_out"} for name in every]
    chosen = {n for n, a, p in zip(every, layers, which, strict=True) if part == "unet" or (a & wanted and p & wanted)}
    if key == "lora":
        chosen = {n.removesuffix(".weight") for n in chosen if n.endswith(".weight")}
        assert {name.split(".lora_")[0] for name in group.tensors} == chosen
        assert {t.shape[0] for name, t in group.tensors.items() if "lora_A" in name} == {2}
    else:
        assert {*group.tensors} - {"v1"} == chosen
    assert chosen


@pytest.mark.parametrize(
    "changes", [{"part": "keys and values", "rank": 2, "naming": "class word"}, {"part": "attention"}]
)
def test_what_other_recipes_learned_is_applied(changes, studio, subjects):
    for key in ("lora", "dreambooth-plain"):
        method = method_of(key).changed(**changes)
        (one,) = method.train(studio, subjects, (2,))
        customised = method.apply(studio, [one.learned])
        assert customised.phrases == ("circle" if "naming" in changes else "v1 circle",)
        trained = method.trainer(studio, subjects, 2)
        for _ in trained.run():
            pass
        latent, sigma = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(1)
        context = text_states(studio.base, ["a photo of a circle"])
        with torch.no_grad():
            wanted, found, base = (
                m.denoiser.predict(latent, sigma, Conditioning(context), Plan())
                for m in (trained.objective.model, customised.model, studio.base)
            )
        assert (wanted - found).abs().max() < 0.01 * (wanted - base).abs().max() + 1e-3
        assert (found - base).abs().max() > 1e-3


def test_a_cosine_rate_falls_over_the_run_and_is_kept_under_its_steps(studio, subjects):
    constant, cosine = (method_of("lora").changed(schedule=s) for s in ("constant", "cosine"))
    assert constant.run_settings(100) == constant.run_settings(200)
    assert cosine.run_settings(100) != cosine.run_settings(200)
    rates = [report.learning_rate for report in cosine.trainer(studio, subjects, 3).run()]
    assert rates == pytest.approx([5e-3, 5e-3 * 0.55, 5e-4])


def test_dcos_loss_written_out(studio, subjects):
    """A network trained for a step, against the base model's own prediction, whose caption says the class word."""
    method = PUBLISHED["dco"].method.changed(batch_size=2, learning_rate=0.02, beta=300.0, weighting="velocity")
    trainer = method.trainer(studio, subjects, 1)
    _ = [*trainer.run()]
    objective, base = trainer.objective, studio.base
    with torch.no_grad():
        got = objective.losses(torch.Generator().manual_seed(3))["consistency"].tolist()
    layers = [m for m in objective.model.denoiser.unet.modules() if isinstance(m, BaseTunerLayer)]
    assert layers
    assert not any(layer.disable_adapters for layer in layers)  # they are off for the base model's prediction alone
    generator = torch.Generator().manual_seed(3)
    photos, chosen = base.encode(list(subjects[0].photos)), []
    for _ in range(2):
        torch.randint(1, (), generator=generator)
        chosen.append(int(torch.randint(len(photos), (), generator=generator)))
        torch.randint(1, (), generator=generator)
    times = torch.randint(1000, (2,), generator=generator)
    eps = torch.randn(2, *photos.shape[1:], generator=generator)
    sigma = base.denoiser.sigmas[times]
    noised = photos[chosen] + sigma.reshape(-1, 1, 1, 1) * eps

    def error(model, said):
        with torch.no_grad():
            context = text_states(model, [f"a photo of a {said}"] * 2)
            out = model.denoiser.predict(noised, sigma, Conditioning(context), Plan())
        return (out - eps).square().mean((1, 2, 3)).double()

    weights = (1 + base.denoiser.sigmas.square()).clamp(max=8)
    further = 300 * (weights[times] / weights.mean()) * (error(objective.model, "v1") - error(base, "circle"))
    assert further.abs().max() > 0.05
    assert got == pytest.approx(torch.log1p(torch.exp(further)).tolist(), rel=1e-3)
    assert error(objective.model, "v1").tolist() != pytest.approx(error(base, "circle").tolist(), rel=1e-3)


def test_dcos_word_keeps_its_length_and_learns(studio, subjects):
    trainer = method_of("dco").trainer(studio, subjects, 2)
    ((word, vector),) = trainer.objective.words.items()
    start = vector.detach().clone()
    _ = [*trainer.run()]
    assert word == "v1"
    assert vector.norm().item() == pytest.approx(start.norm().item(), rel=1e-5)
    assert not torch.allclose(vector, start, rtol=1e-3)
