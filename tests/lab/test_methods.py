"""The lab's methods: what they learn, what they leave alone, and Perfusion's formula by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.concepts import LoadedConcept, words_of
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.evaluate import evaluate
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_core.embedded.tinyworld.captions import unseen_scenes
from infusion_core.metrics.fisher import DenoiserPredictor
from infusion_core.residuals import zero_residual
from infusion_core.schedule import ALWAYS, NEVER, Window
from infusion_lab.measures import bare_pictures, drawn_and_scored, fisher
from infusion_lab.methods.infusion import Infusion, without_maps
from infusion_lab.methods.method import Learned, Recipe
from infusion_lab.methods.perfusion import BETA, TAU, GatedEdit
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.studio import text_states
from infusion_lab.tinyworld import subjects_of

from .fast import FAST, STEPS, method_of


@pytest.fixture(scope="module")
def trained(studio, subjects):
    """First and last snapshot of a method, trained when a test first asks for it."""
    return cache(lambda key: list(method_of(key).train(studio, subjects, (1, STEPS))))


@pytest.fixture
def applied(studio, trained):
    """The model with what a method has learned in it."""
    return lambda key: method_of(key).apply(studio, [trained(key)[-1].learned])


def loss_on_photos(customised, subject):
    """The noise prediction's error on fixed draws, without any of the lab's own loss code."""
    model = customised.model
    latents = model.encode(list(subject.photos))[:4]
    generator = torch.Generator().manual_seed(5)
    eps = torch.randn(latents.shape, generator=generator)
    sigma = model.denoiser.sigmas[[300, 500, 700, 850]]
    noised = latents + sigma.reshape(-1, 1, 1, 1) * eps
    prompt = model.text.encode(f"a photo of a {customised.phrases[0]}", words_of(customised.concepts))
    with torch.no_grad():
        seen = DenoiserPredictor(model.denoiser, [prompt], customised.concepts)(noised, sigma, 0)
    return (seen - eps).square().mean().item()


@pytest.mark.parametrize("key", FAST)
def test_the_loss_on_the_photos_falls(key, studio, subjects, trained):
    first, last = (loss_on_photos(method_of(key).apply(studio, [s.learned]), subjects[0]) for s in trained(key))
    assert [s.step for s in trained(key)] == [1, STEPS]
    assert last < first


@pytest.mark.parametrize(
    ("key", "may_change"),
    [
        ("dreambooth", lambda name: name.startswith("unet.")),
        ("dreambooth-plain", lambda name: name.startswith("unet.")),
        ("lora", lambda name: ".lora_" in name),
        ("dco", lambda name: ".lora_" in name),
        ("textual-inversion", lambda name: False),
        ("custom-diffusion", lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))),
        ("perfusion", lambda name: False),
        ("infusion", lambda name: False),
    ],
)
def test_nothing_but_what_is_learned_changes(key, may_change, studio, applied):
    def state(model):
        parts = {"unet": model.denoiser.unet, "text": model.text.encoders[0].model, "vae": model.vae}
        return {
            f"{part}.{name}".replace(".base_layer", "").replace(".base.", "."): value
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }

    before, after = state(studio.base), state(applied(key).model)
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert all(may_change(name) for name in changed)
    assert bool(changed) == (key in ("dreambooth", "dreambooth-plain", "lora", "dco", "custom-diffusion"))


@pytest.mark.parametrize("key", ["textual-inversion", "perfusion", "dco"])
def test_a_new_word_changes_no_text_without_it(key, studio, applied):
    model = applied(key).model
    texts = ["a photo of a circle", "a photo of a big square"]
    with torch.no_grad():
        assert torch.equal(text_states(model, texts), text_states(studio.base, texts))
        with_rare_word, plain = text_states(model, ["a photo of a v1"]), text_states(model, ["a photo of a circle"])
    assert not torch.equal(with_rare_word, plain)


@pytest.mark.parametrize("key", FAST)
def test_only_infusion_leaves_other_prompts_exactly_alone(key, studio, applied):
    divergence = fisher(studio.base, applied(key), ["circle"], prompts=2, draws=4).interval.mean
    if key in ("infusion", "textual-inversion"):  # a new word alone cannot touch prompts without it
        assert divergence == 0
    else:
        assert divergence > 0


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_a_strength_acts_once(strength, studio, trained):
    """Bare and scored pictures are those of the residual loaded by hand at that strength."""
    model, settings, ember = studio.base, SampleSettings(3, 3.0), CONCEPTS["ember"]
    learned = trained("infusion")[-1].learned
    customised = replace(method_of("infusion"), strength=strength).apply(studio, [learned])
    numbers = {name: tensor.float() for name, tensor in learned.tensors.items()}
    blank = zero_residual(model.denoiser.base, "circle", "layer")
    residual = replace(blank, tensors=numbers, training=Infusion().settings.facts)
    by_hand, plain = (LoadedConcept("ember", residual, s) for s in (strength, 1.0))
    (bare,) = bare_pictures(customised, "circle", 1, settings, seed=3)
    wanted, unscaled = (draw(model, "a photo of a circle", [c], 1, 3, settings)[0] for c in (by_hand, plain))
    assert np.array_equal(bare, wanted)
    assert not np.array_equal(bare, unscaled)
    (scored,) = drawn_and_scored(customised, ember, 1, [3], settings)
    (same,) = evaluate(
        lambda p, n, seed: draw(model, p, [by_hand], n, seed, settings), ember, unseen_scenes(ember, 1), [3]
    )
    assert np.array_equal(scored.picture, same.picture)


def test_maps_are_replaced_as_in_training_unless_told_otherwise(studio, trained):
    learned = [trained("infusion")[-1].learned]
    some, own = Infusion().changed(replacement_end=0.3), without_maps()
    windows = [
        method.apply(studio, learned).concepts[0].map_window for method in (some, own, replace(own, replacement=ALWAYS))
    ]
    assert windows == [Window(0.0, 0.3), NEVER, ALWAYS]


@pytest.mark.parametrize("key", ["perfusion", "lora", "dco"])
def test_a_resumed_run_repeats_bit_by_bit(key, studio, subjects):
    def run(steps, state=None):
        trainer, seen = method_of(key).trainer(studio, subjects, 4, seed=7, state=state), []
        for report in trainer.run():
            seen.append(report.step)
            if report.step == steps:
                break
        return trainer, seen

    whole, (resumed, seen) = run(4)[0], run(4, run(2)[0].state())
    assert seen == [3, 4]  # from the start it would end in the same bits
    for told in ("parameters", "mean", "square", "extra"):
        first, second = (getattr(trainer.state(), told) for trainer in (whole, resumed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(resumed.learned()[k], v) for k, v in whole.learned().items())


def test_validation_repeats_and_has_as_many_draws_as_asked(studio, subjects):
    objective = method_of("dreambooth").objective(studio, subjects, 0)
    with torch.no_grad():
        first, again, other = (objective.validation(3, seed) for seed in (1, 1, 2))
    assert first.shape == (3,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_concepts_fit_in_one_model(studio):
    two = subjects_of([CONCEPTS["ember"], CONCEPTS["flag"]])
    joint = method_of("custom-diffusion")
    (only,) = joint.train(studio, two, (1,))
    phrases = ("v1 circle", "v2 square")
    shown = joint.objective(studio, two, 0).materials
    assert [(len(one.photos), one.phrase) for one in shown] == [
        (len(subject.photos), phrase) for subject, phrase in zip(two, phrases, strict=True)
    ]
    assert joint.apply(studio, [only.learned]).phrases == phrases
    apart = method_of("perfusion")
    learned = [next(apart.train(studio, [subject], (1,))).learned for subject in two]
    customised = apart.apply(studio, learned)
    assert customised.phrases == ("v1", "v2")
    context = customised.model.text.encode("a photo of a v1 at the left and a v2 at the right").conditioning.context
    latent, sigma = torch.zeros(1, 4, 16, 16), torch.ones(1)
    out = customised.model.denoiser.predict(latent, sigma, Conditioning(context), Plan())
    assert torch.isfinite(out).all()
    edit = next(m for m in customised.model.denoiser.unet.modules() if isinstance(m, GatedEdit))
    assert torch.equal(edit.inputs, torch.stack([one.full("cpu")["state"] for one in learned]))


def test_perfusions_gate_is_the_recipes_in_drawing_alone(studio, subjects, trained):
    learned = trained("perfusion")[-1].learned
    strict, open_wide = (method_of("perfusion").changed(gate=g) for g in (BETA, 0.5))
    assert strict.application != open_wide.application
    latent, sigma = torch.zeros(1, 4, 16, 16), torch.ones(1)

    def drawn(method):
        model = method.apply(studio, [learned]).model
        edits = [m for m in model.denoiser.unet.modules() if isinstance(m, GatedEdit)]
        assert {edit.bias for edit in edits} == {method.recipe.gate}
        context = text_states(model, ["a photo of a v1"])
        with torch.no_grad():
            return model.denoiser.predict(latent, sigma, Conditioning(context), Plan())

    assert not torch.equal(drawn(strict), drawn(open_wide))
    network = open_wide.objective(studio, subjects, 0).model.denoiser.unet
    assert {m.bias for m in network.modules() if isinstance(m, GatedEdit)} == {BETA}


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


def test_what_is_stored_is_half_precision(studio, subjects, trained):
    def size(key):
        return len(Learned(subjects, method_of(key).objective(studio, subjects, 0).learned()).data)

    numbers = sum(p.numel() for p in studio.base.denoiser.unet.parameters())
    whole = size("dreambooth-plain")
    assert whole == pytest.approx(2 * numbers, rel=0.02)
    ours = len(trained("infusion")[-1].learned.data)
    assert size("textual-inversion") < ours < size("perfusion") < size("lora") < size("dco") < whole


def test_every_method_of_the_registry_is_tested_here():
    assert set(PUBLISHED) == set(FAST) - {"infusion"}
    assert all(isinstance(published.method.recipe, Recipe) for published in PUBLISHED.values())
