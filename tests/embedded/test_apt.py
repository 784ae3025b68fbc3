"""LoRA training and what restrains it, against peft, explicit attention and finite differences."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model
from PIL import Image

from infusion_core.attention import Plan
from infusion_core.embedded.lora import apt_trainer, captions_for, layers_of
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.lora import DOWN, UP, LoraSet
from infusion_core.noise import input_scale, seeded
from infusion_core.training.apt import AptObjective, AptSettings
from infusion_core.training.engine import Trainer
from infusion_core.training.lora import LoraObjective, LoraSettings
from infusion_core.training.overfitting import REFERENCE, SEEN, TRAINED, UNRESTRAINED, Restraint
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.shown import Shown

from .factories import save_model

SEEDS_APART = 1_000_003
CAPTIONS = ("a photo of a dog", "a dog on the beach")
SETTINGS = AptSettings(
    steps=4, learning_rate=1e-2, batch_size=3, rank=2, alpha=4.0, seed=7, snapshot_every=100, times="uniform",
    restraint=UNRESTRAINED, stabilisation=0.0, alignment=0.0, validation_draws=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = load_model(str(save_model(tmp_path_factory.mktemp("apt") / "sd1", "sd1", 768)), "cpu")
    for name, module in made.denoiser.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.weight.data *= 4  # maps that are not even
    return made


def latents(count=2, variants=0, seed=1):
    return torch.randn(count, 1 + variants, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def lora_of(model, settings=SETTINGS, size=0.0):
    lora = LoraSet(
        layers_of(model, settings.targets, settings.text_rate > 0), settings.rank, settings.alpha, settings.seed
    )
    generator = torch.Generator().manual_seed(3)
    for name, tensor in lora.tensors.items():
        if name.endswith(UP):
            tensor.data.normal_(0, size, generator=generator) if size else None
    return lora


def objective(model, settings=SETTINGS, shown=None, size=0.0, kind=AptObjective, **more):
    shown = shown or Shown(latents(), captions_for(model.text, CAPTIONS, settings.text_rate > 0))
    return kind(model.denoiser, lora_of(model, settings, size), shown, settings, **more)


def trained(made, settings=SETTINGS, state=None, stop=None):
    trainer = Trainer(made, settings, state)
    reports = []
    with made.lora.installed():
        for report in trainer.run():
            reports.append(report)
            if report.step == stop:
                break
    return trainer, reports


def draws(generator, pictures, settings=SETTINGS, variants=None):
    """What a pass draws, in the order that keeps runs repeatable."""
    size = settings.batch_size
    rows = torch.randint(pictures, (size,), generator=generator)
    captions = torch.randint(len(CAPTIONS), (size,), generator=generator).tolist()
    times = torch.randint(1000, (size,), generator=generator)
    eps = torch.randn(size, 4, 8, 8, generator=generator)
    return rows, captions, times, eps


def texts(model, captions):
    return torch.cat([model.text.encode(CAPTIONS[i]).conditioning.context for i in captions])


def test_every_switch_off_is_plain_lora_training_bit_for_bit_and_pefts(model):
    apt, _ = trained(objective(model))
    plain_settings = LoraSettings(
        **{name: getattr(SETTINGS, name) for name in LoraSettings.__dataclass_fields__ if hasattr(SETTINGS, name)}
    )
    plain, reports = trained(objective(model, plain_settings, kind=LoraObjective), plain_settings)
    assert all(torch.equal(tensor, plain.learned()[name]) for name, tensor in apt.learned().items())

    fresh = lora_of(model)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    unet = get_peft_model(deepcopy(model.denoiser.unet), config)
    theirs = {}
    for path, parameter in unet.named_parameters():
        if "lora_" in path:
            layer, _, which = path.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            name = f"lora_unet_{layer.replace('.', '_')}.{DOWN if which == 'lora_A' else UP}"
            theirs[name] = parameter
            parameter.data.copy_(fresh.tensors[name])
    assert theirs.keys() == fresh.tensors.keys()
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.0)
    for step in range(4):
        rows, captions, times, eps = draws(seeded(7 * SEEDS_APART + step), 2)
        sigma = model.denoiser.sigmas[times]
        noised = latents()[rows, 0] + sigma.reshape(-1, 1, 1, 1) * eps
        said = unet(noised * input_scale(sigma).reshape(-1, 1, 1, 1), times, texts(model, captions)).sample
        loss = (said - eps).square().mean()
        assert loss.item() == pytest.approx(reports[step].loss, rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in apt.learned().items():
        torch.testing.assert_close(tensor, theirs[name].detach(), rtol=1e-3, atol=2e-5)


class Watched:
    """Explicit attention of every layer of a UNet: maps of cross-attention, features of self-attention."""

    def __init__(self, unet):
        self.maps, self.features = {}, {}
        unet.set_attn_processor(AttnProcessor())
        for path, module in unet.named_modules():
            if path.endswith(".attn2"):
                module.register_forward_hook(self.map_of(path), with_kwargs=True)
            if path.endswith(".attn1"):
                module.register_forward_hook(lambda m, a, out, path=path: self.features.update({path[:-1]: out}))

    def map_of(self, path):
        def keep(module, args, kwargs, out):
            x, context = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]
            q, k = (
                t.reshape(*t.shape[:2], module.heads, -1).transpose(1, 2)
                for t in (module.to_q(x), module.to_k(context))
            )
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
            self.maps[path[:-1]] = scores.softmax(-1)

        return keep


@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_losses_are_the_papers_on_maps_and_features_written_out(model, distance):
    settings = replace(
        SETTINGS, stabilisation=0.7, stabilised=("up",), alignment=0.3, distance=distance, targets="transformer",
        restraint=Restraint(reweight=True, bins=5, temperature=10.0), weighting="velocity",
    )  # fmt: skip
    made = objective(model, settings, size=0.3)
    state = {
        REFERENCE: torch.tensor([0.5, 0.2, 0.3, 0.1, 0.2]).double(),
        TRAINED: torch.tensor([0.4, 0.19, 0.3, 0.3, 0.11]).double(),
        SEEN: torch.ones(5).long(),
    }
    made.restore(state)
    gamma = made.indicator.gamma
    assert ((gamma > 0) & (gamma < 1)).sum() == 3
    with made.lora.installed():
        found = made.losses(seeded(11))

    merged = deepcopy(model.denoiser.unet)
    for name, module in layers_of(replace(model, denoiser=replace_unet(model, merged)), "transformer", False).items():
        up, down = (made.lora.tensors[f"{name}.{which}"].detach().flatten(1) for which in (UP, DOWN))
        module.weight.data += (2.0 * up @ down).reshape(module.weight.shape)
    rows, captions, times, eps = draws(seeded(11), 2)
    sigma = model.denoiser.sigmas[times]
    noised = latents()[rows, 0] + sigma.reshape(-1, 1, 1, 1) * eps
    seen = {}
    errors = {}
    for name, unet in {"frozen": deepcopy(model.denoiser.unet), "trained": merged}.items():
        seen[name] = Watched(unet)
        with torch.no_grad():
            said = unet(noised * input_scale(sigma).reshape(-1, 1, 1, 1), times, texts(model, captions)).sample
        errors[name] = (said - eps).square().mean((1, 2, 3))
    bins = times * 5 // 1000
    levels = (1 + model.denoiser.sigmas.square()).clamp(max=8)
    weights = (levels / levels.mean())[times] * (1 - gamma[bins])
    torch.testing.assert_close(found["denoising"], errors["trained"] * weights, rtol=1e-3, atol=1e-4)

    maps = [(seen["trained"].maps[k] - seen["frozen"].maps[k]) for k in seen["frozen"].maps]
    apart = [m.abs() if distance == "absolute" else m.square() for m in maps]
    expected = 0.3 * torch.stack([a.sum(3).mean((1, 2)) for a in apart]).mean(0)
    torch.testing.assert_close(found["alignment"], expected, rtol=2e-3, atol=1e-6)

    held = []
    for path, features in seen["trained"].features.items():
        if path.startswith("up_blocks"):
            other = seen["frozen"].features[path]
            moved = (features.mean(1) - other.mean(1)).square() + (
                features.std(1, correction=0) - other.std(1, correction=0)
            ).square()
            held.append(moved.mean(1))
    torch.testing.assert_close(found["stabilisation"], 0.7 * torch.stack(held).mean(0), rtol=2e-3, atol=1e-6)
    assert 0 < len(held) < len(seen["trained"].features)

    after = made.indicator.state()
    for row, bin_ in enumerate(bins.tolist()):
        for name, key in ((REFERENCE, "frozen"), (TRAINED, "trained")):
            state[name][bin_] += 0.1 * (errors[key][row] - state[name][bin_])
    torch.testing.assert_close(after[REFERENCE], state[REFERENCE], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[TRAINED], state[TRAINED], rtol=1e-3, atol=1e-4)


def replace_unet(model, unet):
    made = deepcopy(model.denoiser)
    made.unet = unet
    return made


@pytest.mark.parametrize("name", ["stabilisation", "alignment"])
def test_gradients_are_those_of_finite_differences(model, name):
    double = replace(model, denoiser=deepcopy(model.denoiser))
    double.denoiser.unet.double()
    shown = Shown(latents().double(), captions_for(double.text, CAPTIONS, False))
    settings = replace(SETTINGS, distance="squared", **{name: 1.0})
    context = shown.captions.prompts
    for prompt in context:
        prompt.conditioning.__dict__["context"] = prompt.conditioning.context.double()
    made = objective(double, settings, shown, size=0.3)
    made.lora.tensors = {k: v.detach().double().requires_grad_() for k, v in made.lora.tensors.items()}

    def loss():
        with made.lora.installed():
            return made.losses(seeded(5))[name].sum()

    loss().backward()
    checked = 0
    for key, tensor in made.lora.tensors.items():
        if "attn1_to_v" not in key and "attn2_to_k" not in key and "attn2_to_q" not in key:
            continue
        index = (0,) * tensor.dim()
        slopes = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                tensor[index] += step
                slopes.append(float(loss()))
                tensor[index] -= step
        expected = (slopes[0] - slopes[1]) / 2e-5
        slope = 0.0 if tensor.grad is None else float(tensor.grad[index])  # none flows behind the last site
        assert slope == pytest.approx(expected, rel=1e-4, abs=1e-11)
        checked += abs(expected) > 1e-9
    assert checked > 10


ALL_ON = replace(
    SETTINGS, steps=6, stabilisation=0.1, alignment=0.1, accumulation=2,
    restraint=Restraint(augment=True, most_augmented=1.0, reweight=True, temperature=50.0),
)  # fmt: skip


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


def test_text_encoders_learn_at_their_own_rate_and_the_frozen_model_reads_with_its_own(model):
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
