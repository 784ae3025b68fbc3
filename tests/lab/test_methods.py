"""The lab's methods: what they learn, what they leave alone, and Perfusion's formula by hand."""

from __future__ import annotations

import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_core.metrics.fisher import DenoiserPredictor
from infusion_core.trainer import TrainSettings
from infusion_lab.measures import fisher
from infusion_lab.methods.infusion import Infusion
from infusion_lab.methods.method import Recipe
from infusion_lab.methods.perfusion import BETA, TAU, GatedEdit
from infusion_lab.methods.registry import PUBLISHED, subjects_of, with_recipe
from infusion_lab.studio import Studio, text_states

STEPS = 12
FAST = {
    "dreambooth": 5e-4,
    "dreambooth-plain": 5e-4,
    "lora": 5e-3,
    "textual-inversion": 3e-2,
    "custom-diffusion": 1e-3,
    "perfusion": 0.1,
    "infusion": 0.05,
}


def method_of(key):
    if key == "infusion":
        return Infusion(TrainSettings(learning_rate=FAST[key]))
    return with_recipe(PUBLISHED[key].method, {"learning_rate": FAST[key], "batch_size": 2})


@pytest.fixture(scope="module")
def studio(tinyworld, tmp_path_factory):
    return Studio(tinyworld, tmp_path_factory.mktemp("studio"), class_pictures=2)


@pytest.fixture(scope="module")
def subjects():
    return subjects_of([CONCEPTS["ember"]])


@pytest.fixture(scope="module")
def snapshots(studio, subjects):
    """First and last snapshot of every method."""
    return {key: list(method_of(key).train(studio, subjects, (1, STEPS))) for key in FAST}


def loss_on_photos(studio, customised, subject):
    """The noise prediction's error on fixed draws, without any of the lab's own loss code."""
    model = customised.model
    latents = model.encode(list(subject.photos))[:4]
    generator = torch.Generator().manual_seed(5)
    eps = torch.randn(latents.shape, generator=generator)
    sigma = model.denoiser.sigmas[[300, 500, 700, 850]]
    noised = latents + sigma.reshape(-1, 1, 1, 1) * eps
    words = {name: residual.word for name, (residual, _) in customised.concepts.items()}
    prompt = model.text.encode(f"a photo of a {customised.phrases[0]}", words)
    with torch.no_grad():
        seen = DenoiserPredictor(model.denoiser, [prompt], tuple(customised.concepts.values()))(noised, sigma, 0)
    return (seen - eps).square().mean().item()


@pytest.mark.parametrize("key", FAST)
def test_the_loss_on_the_photos_falls(key, studio, subjects, snapshots):
    method = method_of(key)
    first, last = (loss_on_photos(studio, method.apply(studio, [s.learned]), subjects[0]) for s in snapshots[key])
    assert [s.step for s in snapshots[key]] == [1, STEPS]
    assert last < first


@pytest.mark.parametrize(
    ("key", "may_change"),
    [
        ("dreambooth", lambda name: name.startswith("unet.")),
        ("dreambooth-plain", lambda name: name.startswith("unet.")),
        ("lora", lambda name: ".lora_" in name),
        ("textual-inversion", lambda name: False),
        ("custom-diffusion", lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))),
        ("perfusion", lambda name: False),
        ("infusion", lambda name: False),
    ],
)
def test_nothing_but_what_is_learned_changes(key, may_change, studio, subjects, snapshots):
    def state(model):
        parts = {"unet": model.denoiser.unet, "text": model.text.encoders[0].model, "vae": model.vae}
        return {
            f"{part}.{name}".replace(".base_layer", "").replace(".base.", "."): value
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    before = state(studio.base)
    after = state(method_of(key).apply(studio, [snapshots[key][-1].learned]).model)
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert all(may_change(name) for name in changed)
    assert bool(changed) == (key in ("dreambooth", "dreambooth-plain", "lora", "custom-diffusion"))


@pytest.mark.parametrize("key", ["textual-inversion", "perfusion"])
def test_a_new_word_changes_no_text_without_it(key, studio, snapshots):
    model = method_of(key).apply(studio, [snapshots[key][-1].learned]).model
    texts = ["a photo of a circle", "a photo of a big square"]
    with torch.no_grad():
        assert torch.equal(text_states(model, texts), text_states(studio.base, texts))
        with_mark, plain = text_states(model, ["a photo of a v1"]), text_states(model, ["a photo of a circle"])
    assert not torch.equal(with_mark, plain)


@pytest.mark.parametrize("key", FAST)
def test_only_infusion_leaves_other_prompts_exactly_alone(key, studio, snapshots):
    customised = method_of(key).apply(studio, [snapshots[key][-1].learned])
    divergence = fisher(studio.base, customised, ["circle"], prompts=4, draws=8).interval.mean
    if key in ("infusion", "textual-inversion"):  # a new word alone cannot touch prompts without it
        assert divergence == 0
    else:
        assert divergence > 0


def test_training_repeats_bit_by_bit(studio, subjects, snapshots):
    again = list(method_of("lora").train(studio, subjects, (1, STEPS)))[-1].learned.tensors
    assert all(torch.equal(again[k], v) for k, v in snapshots["lora"][-1].learned.tensors.items())


def test_several_concepts_fit_in_one_model(studio, snapshots):
    two = subjects_of([CONCEPTS["ember"], CONCEPTS["flag"]])
    joint = method_of("custom-diffusion")
    (only,) = joint.train(studio, two, (2,))
    assert joint.apply(studio, [only.learned]).phrases == ("v1 circle", "v2 square")
    apart = method_of("perfusion")
    learned = [next(apart.train(studio, [subject], (2,))).learned for subject in two]
    customised = apart.apply(studio, learned)
    assert customised.phrases == ("v1", "v2")
    context = customised.model.text.encode("a photo of a v1 at the left and a v2 at the right").conditioning.context
    latent, sigma = torch.zeros(1, 4, 16, 16), torch.ones(1)
    out = customised.model.denoiser.predict(latent, sigma, Conditioning(context), Plan())
    assert torch.isfinite(out).all()


def test_perfusions_edit_by_explicit_matrices():
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(5, 3, bias=False)
    torch.nn.init.normal_(base.weight, generator=generator)
    samples = torch.randn(40, 5, generator=generator)
    metric = torch.linalg.inv(samples.T @ samples / 40)
    inputs, outputs = torch.randn(1, 5, generator=generator), torch.randn(1, 3, generator=generator)
    states = torch.randn(2, 4, 5, generator=generator)
    got = GatedEdit(base, inputs, outputs, metric)(states)
    i, o = inputs[0], outputs[0]
    for row in range(2):
        for token in range(4):
            e = states[row, token]
            s = (i @ metric @ e) / (i @ metric @ i)
            wanted = base.weight @ (e - s * i) + o * torch.sigmoid((s - BETA) / TAU)
            assert torch.allclose(got[row, token], wanted, atol=1e-5)


def test_perfusions_edits_of_two_concepts_take_both_directions_out():
    generator = torch.Generator().manual_seed(1)
    base = torch.nn.Linear(5, 3, bias=False)
    torch.nn.init.normal_(base.weight, generator=generator)
    samples = torch.randn(40, 5, generator=generator)
    metric = torch.linalg.inv(samples.T @ samples / 40)
    inputs, outputs = torch.randn(2, 5, generator=generator), torch.zeros(2, 3)
    edit = GatedEdit(base, inputs, outputs, metric)
    mixed = 0.3 * inputs[0] - 1.7 * inputs[1]
    assert edit(mixed[None, None]).abs().max() < 1e-4  # within the span of both nothing of W is left
    aside = torch.linalg.svd(inputs @ metric).Vh[-1]  # <i_j, e> = 0 for both
    assert torch.allclose(edit(aside[None, None])[0, 0], base.weight @ aside, atol=1e-5)


def test_what_is_stored_is_half_precision(studio, snapshots):
    sizes = {key: len(s[-1].learned.data) for key, s in snapshots.items()}
    numbers = sum(p.numel() for p in studio.base.denoiser.unet.parameters())
    assert sizes["dreambooth"] == pytest.approx(2 * numbers, rel=0.02)
    assert sizes["textual-inversion"] < sizes["infusion"] < sizes["perfusion"] < sizes["lora"] < sizes["dreambooth"]


def test_recipes_are_complete():
    assert set(PUBLISHED) == set(FAST) - {"infusion"}
    for published in PUBLISHED.values():
        assert isinstance(published.method.recipe, Recipe)
        assert published.method.recipe.learning_rate in published.rates
