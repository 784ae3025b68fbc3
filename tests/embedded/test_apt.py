"""LoRA training and what restrains it, against peft, explicit attention and finite differences."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model

from infusion_core.embedded.lora import captions_for, layers_of
from infusion_core.lora import DOWN, UP
from infusion_core.noise import input_scale, seeded
from infusion_core.training.lora import LoraObjective, LoraSettings
from infusion_core.training.overfitting import REFERENCE, SEEN, TRAINED, Restraint
from infusion_core.training.shown import Shown

from .apt import CAPTIONS, SEEDS_APART, SETTINGS, draws, latents, lora_of, objective, texts, trained


@pytest.fixture
def model(sharp):
    return sharp


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
    for read in shown.captions.read:
        read.__dict__["context"] = read.context.double()
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
