"""Cells and training runs are kept under everything they depend on: change any of it, and the name changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.text import TextPath
from infusion_core.embedded.tinyworld import CONCEPTS, TUNING_CONCEPTS
from infusion_core.schedule import NEVER
from infusion_core.training.augmentation import Augmentation
from infusion_lab.bench import FULL, Bench, Scale
from infusion_lab.methods.apt import Apt
from infusion_lab.methods.infusion import Infusion
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.run import STUDIES
from infusion_lab.store import Store
from infusion_lab.studies import ablations, apt, blend, curves, fidelity, restraints, several, toy
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import subjects_of

ONE = replace(
    FULL, concepts=("ember",), ablation_concepts=("acorn",), curve_concepts=1, groups=(("ember", "wasp"),),
    max_steps=400, snapshot_steps=(100, 400),
)  # fmt: skip
LORA = PUBLISHED["lora"].method
METHODS = (LORA, Infusion())


SAMPLING = SampleSettings(25, 3.0)


def bench(model, folder, scale: Scale = ONE, methods=METHODS, captions=("a circle",), seed=0, sampling=SAMPLING):
    studio = Studio(model, folder / "studio", captions, scale.class_pictures)
    return Bench(studio, Store(folder), scale, methods, seed, sampling)


def names(lab, study, method):
    return {(c.method, c.concept): c.name for c in STUDIES[study](lab) if method in ("", c.method)}


AMOUNTS = {
    fidelity.STUDY: ("prompts", "seeds", "samples", "fisher_prompts", "fisher_draws"),
    curves.STUDY: ("curve_prompts", "curve_seeds", "samples", "fisher_prompts", "fisher_draws"),
    several.STUDY: ("group_prompts", "seeds"),
    ablations.STUDY: ("ablation_prompts", "seeds", "samples"),
}
OURS = dict.fromkeys(AMOUNTS, "infusion") | {ablations.STUDY: ablations.PLAIN}


@pytest.mark.parametrize(("study", "amount"), [(s, a) for s, amounts in AMOUNTS.items() for a in amounts])
def test_another_amount_is_another_cell(study, amount, rare, tmp_path):
    more = replace(ONE, **{amount: getattr(ONE, amount) + 1})
    before, after = (names(bench(rare, tmp_path, scale), study, OURS[study]) for scale in (ONE, more))
    assert before.keys() == after.keys()
    assert before
    assert all(before[cell] != after[cell] for cell in before)


LONG = replace(ONE, max_steps=5000)
LONG_METHODS = (PUBLISHED["dreambooth-plain"].method, Apt())
LONG_AMOUNTS = {
    blend.STUDY: ("blend_prompts", "blend_seeds", "blend_samples"),
    apt.STUDY: ("curve_prompts", "curve_seeds", "samples"),
    restraints.STUDY: ("ablation_prompts", "seeds", "samples"),
}


@pytest.mark.parametrize(("study", "amount"), [(s, a) for s, amounts in LONG_AMOUNTS.items() for a in amounts])
def test_another_amount_is_another_cell_of_a_long_study(study, amount, rare, tmp_path):
    more = replace(LONG, **{amount: getattr(LONG, amount) + 1})
    before, after = ([c.name for c in STUDIES[study](bench(rare, tmp_path, s, LONG_METHODS))] for s in (LONG, more))
    assert len(before) == len(after) > 3
    assert not {*before} & {*after}


def other_weights(model):
    denoiser = copy.copy(model.denoiser)
    denoiser.unet = copy.deepcopy(denoiser.unet)
    with torch.no_grad():
        next(denoiser.unet.parameters()).view(-1)[0] += 1e-6
    return replace(model, denoiser=denoiser)


def other_scale(model):
    """Latents are as large as before, and what the autoencoder makes of them is another picture."""
    vae = copy.copy(model.vae)
    vae._internal_dict = FrozenDict({**model.vae.config, "scaling_factor": 0.5})
    return replace(model, vae=vae)


def other_words(model):
    (encoder,) = model.text.encoders
    known = dict(encoder.tokenizer.ids)
    known["circle"], known["square"] = known["square"], known["circle"]
    return replace(model, text=TextPath([replace(encoder, tokenizer=replace(encoder.tokenizer, ids=known))]))


SHORTER = replace(ONE, max_steps=150, snapshot_steps=(100, 150))
EVERYWHERE = {
    "seed": lambda model, folder: bench(model, folder, seed=1),
    "drawing steps": lambda model, folder: bench(model, folder, sampling=replace(SAMPLING, steps=26)),
    "guidance": lambda model, folder: bench(model, folder, sampling=replace(SAMPLING, guidance=4.0)),
    "compute": lambda model, folder: bench(model, folder, sampling=replace(SAMPLING, compute=torch.bfloat16)),
    "weights": lambda model, folder: bench(other_weights(model), folder),
    "scale of latents": lambda model, folder: bench(other_scale(model), folder),
    "words": lambda model, folder: bench(other_words(model), folder),
    "what it can see": lambda model, folder: bench(replace(model, augmentation=Augmentation(turn=0.1)), folder),
    "temperature": lambda model, folder: bench(replace(model, temperature=0.7), folder),
    "training steps": lambda model, folder: bench(model, folder, SHORTER),
    "class pictures": lambda model, folder: bench(model, folder, replace(ONE, class_pictures=3)),
    "captions of the covariance": lambda model, folder: bench(model, folder, captions=("a square",)),
}


@pytest.mark.parametrize("study", AMOUNTS)
@pytest.mark.parametrize("change", EVERYWHERE)
def test_another_seed_sampling_model_or_run_is_another_cell(study, change, rare, tmp_path):
    before = names(bench(rare, tmp_path), study, OURS[study])
    after = names(EVERYWHERE[change](rare, tmp_path), study, OURS[study])
    assert before.keys() == after.keys()
    assert not {*before.values()} & {*after.values()}


@pytest.mark.parametrize("study", [fidelity.STUDY, curves.STUDY, several.STUDY])
@pytest.mark.parametrize(
    ("method", "other"),
    [
        (LORA, LORA.changed(learning_rate=0.5)),
        (LORA, LORA.changed(batch_size=5)),
        (LORA, LORA.changed(prior_weight=0.5)),
        (LORA, LORA.changed(weighting="velocity")),
        (LORA, LORA.changed(schedule="cosine")),
        (LORA, LORA.changed(naming="class word")),
        (Infusion(), Infusion(captions="one")),
        (Infusion(), Infusion(replace(Infusion().settings, bins=3))),
        (Infusion(), Infusion(strength=0.5)),
        (Infusion(), Infusion(replacement=NEVER)),
        (Infusion(), Infusion(base_latent="own")),
    ],
)
def test_another_setting_of_a_method_is_another_cell(study, method, other, rare, tmp_path):
    before, after = (names(bench(rare, tmp_path, methods=[m]), study, m.key) for m in (method, other))
    assert before.keys() == after.keys()
    assert all(before[cell] != after[cell] for cell in before)


@pytest.mark.parametrize("known", [CONCEPTS, TUNING_CONCEPTS])
@pytest.mark.parametrize(("part", "value"), [("shape", "square"), ("background", "teal"), ("look", "")])
def test_another_concept_of_the_same_name_is_another_cell(known, part, value, rare, tmp_path, monkeypatch):
    lab = bench(rare, tmp_path)
    name = "ember" if known is CONCEPTS else "acorn"
    before = {c.name for study in AMOUNTS for c in STUDIES[study](lab) if name in c.concept}
    changed = replace(known[name], **{part: value or known["flag" if known is CONCEPTS else "peak"].look})
    monkeypatch.setitem(known, name, changed)
    after = {c.name for study in AMOUNTS for c in STUDIES[study](lab) if name in c.concept}
    assert len(after) == len(before)
    assert not before & after


def test_a_training_run_is_kept_under_its_photos_and_words(rare, tmp_path):
    lab = bench(rare, tmp_path)
    (subject,) = subjects_of([CONCEPTS["ember"]])
    others = [
        replace(subject, photos=subject.photos[::-1]),
        replace(subject, word="square"),
        replace(subject, rare_word="v2"),
        replace(subject, name="wasp"),
    ]
    keys = {repr(lab.source(LORA, [s], 400, 400)) for s in (subject, *others)}
    assert len(keys) == 5
    assert lab.source(LORA, [subject], 400, 400) == lab.source(LORA.changed(steps=7), [subject], 400, 400)
    assert lab.source(Infusion(), [subject], 400, 100) != lab.source(Infusion(), [subject], 200, 100)  # another decay


def test_runs_are_shared_where_only_drawing_differs(rare, tmp_path):
    drawn = bench(rare, tmp_path), bench(rare, tmp_path, sampling=replace(SAMPLING, compute=torch.bfloat16))
    (subject,) = subjects_of([CONCEPTS["ember"]])
    runs = {lab.source(m, [subject], 400, 400)[0] for lab in drawn for m in (Infusion(), Infusion(strength=0.5))}
    assert len(runs) == 1


def test_toy_worlds_are_kept_under_their_own_amounts(rare, tmp_path, monkeypatch):
    def found(**changes):
        return {c.name for c in toy.cells(bench(rare, tmp_path, **changes))}

    before = found()
    assert not before & found(seed=1)
    monkeypatch.setattr(toy, "SAMPLES", 400)
    assert not before & found()
