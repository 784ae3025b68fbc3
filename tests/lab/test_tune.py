"""Tuning: what may be chosen, that every method has the same budget, what is kept and what the lab makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import optuna
import pytest
import torch

from infusion_cli.pages import render_page
from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_core.errors import InfusionError
from infusion_core.training.overfitting import MEASURED
from infusion_core.training.residual import ResidualSettings
from infusion_lab import bench, run, tune
from infusion_lab.methods import infusion, registry
from infusion_lab.methods.baseline import BaselineObjective
from infusion_lab.methods.registry import PUBLISHED, TUNABLE, all_methods, best_of, tuning
from infusion_lab.methods.space import MOST_STEPS, Choice, Knob, Span
from infusion_lab.report.page import TEMPLATES
from infusion_lab.store import Result, Row
from infusion_lab.studio import Studio

SHORT = tune.Budget(trials=3, concepts=("acorn",), most_steps=2, prompts=1, seeds=1, draw_steps=2)


@pytest.fixture
def at_hand(rare, monkeypatch):
    """Every bench has the model that is loaded already."""
    monkeypatch.setattr(Studio, "base_identity", Studio(rare, Path(), ()).base_identity)
    monkeypatch.setattr(bench, "load_model", lambda _: rare)
    monkeypatch.setattr(bench, "with_rare_words", lambda model: model)


@pytest.fixture
def quick(at_hand, monkeypatch):
    """Tuning whose training and scoring is a formula of the settings; the calls of it."""
    calls = []

    def measure(lab, method, concept, budget):
        calls.append((method.key, concept.name, dict(method.knobs)))
        if method.knobs["batch_size"] == 8:
            return Result([Row("tune", method.key, concept.name, 1, "", 0, tune.DIVERGED, 1.0)])
        error = abs(method.knobs["learning_rate"] - 0.01) + len(concept.name) / 100
        found = dict.fromkeys(tune.ERRORS, error) | {"concept_error": 1 / method.steps, "picture_error": error}
        return Result([Row("tune", method.key, concept.name, 1, "", 0, m, v) for m, v in found.items()])

    monkeypatch.setattr(tune, "_measure", measure)
    several = replace(SHORT, trials=12, concepts=("acorn", "crate", "peak"), most_steps=52)
    monkeypatch.setattr(tune, "BUDGETS", {"quick": several})
    return calls


def trials_of(folder, key):
    return tuning(folder / "tuned.json")["methods"][key]["trials"]


@pytest.mark.parametrize("key", TUNABLE)
def test_every_knob_is_a_setting_and_the_published_ones_can_be_proposed(key):
    method, space = TUNABLE[key].method, TUNABLE[key].space
    first = tune.first_settings(method, space, MOST_STEPS)
    for knob in space:
        assert knob.name in method.knobs
        if knob.name not in first:
            continue
        if isinstance(knob.values, Choice):
            assert first[knob.name] in knob.values.options
            assert all(method.changed(**{knob.name: option}) for option in knob.values.options)
        else:
            assert knob.values.low <= first[knob.name] <= knob.values.high
    steps = next(knob.values for knob in space if knob.name == "steps")
    assert steps.high == 2000
    assert method.changed(**first).knobs == {**method.knobs, "steps": min(method.steps, 2000)}


def test_whatever_infusion_has_the_baselines_have_too():
    alone = {"layout", "parts", "key_scale", "key_rate", "where", "bins", "replace_maps", "replacement_end"}
    ours = {knob.name for knob in TUNABLE["infusion"].space} - alone
    for published in PUBLISHED.values():
        assert ours <= {knob.name for knob in published.space}
    assert {"weighting", "times", "schedule", "captions", "learning_rate", "steps", "batch_size"} == ours


def test_a_setting_that_means_nothing_is_not_proposed():
    space = (Knob("naming", Choice(("rare", "class"))), Knob("prior", Span(0.1, 1.0), only_if=("naming", "rare")))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposed = [tune.choose(study.ask(), space, MOST_STEPS) for _ in range(20)]
    assert {p["naming"] for p in proposed} == {"rare", "class"}
    assert all(("prior" in p) == (p["naming"] == "rare") for p in proposed)


def test_a_span_has_every_magnitude_and_ends_at_the_most_steps():
    space = (Knob("steps", Span(50, 2000)), Knob("learning_rate", Span(1e-6, 1.0)))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    proposed = [tune.choose(study.ask(), space, 400) for _ in range(200)]
    assert {type(p["steps"]) for p in proposed} == {int}
    assert 50 <= min(p["steps"] for p in proposed) <= max(p["steps"] for p in proposed) <= 400
    assert 60 < sum(p["learning_rate"] < 1e-3 for p in proposed) < 140


def test_every_method_has_the_same_budget_and_its_own_settings_first(quick, tmp_path):
    tune.run_tune(tmp_path, True, [], ["lora", "infusion"], 0)
    for key in ("lora", "infusion"):
        trials = trials_of(tmp_path, key)
        assert len(trials) == 12
        assert trials[0]["settings"]["learning_rate"] == TUNABLE[key].method.knobs["learning_rate"]
        assert trials[0]["settings"]["steps"] == 52
        whole = [t for t in trials if not t["pruned"]]
        assert all(t["concepts"] == 3 for t in whole)
        assert all(t["concepts"] < 3 or "diverged" in t for t in trials if t["pruned"])
        assert 0 < len(whole) < 12
        (headline,) = [t for t in trials if "headline" in t["best"]]
        (likeness,) = [t for t in trials if "likeness" in t["best"]]
        assert headline["picture_error"] == min(t["picture_error"] for t in whole)
        assert likeness["concept_error"] == min(t["concept_error"] for t in whole)
        assert any("diverged" in t for t in trials)


def test_a_stopped_run_goes_on_to_the_same_trials(quick, tmp_path):
    tune.run_tune(tmp_path / "whole", True, [], ["lora"], 3, trials=12)
    learned = len(quick)
    tune.run_tune(tmp_path / "parts", True, [], ["lora"], 3, trials=5)
    begun = len(quick)
    tune.run_tune(tmp_path / "parts", True, [], ["lora"], 3, trials=12)
    assert trials_of(tmp_path / "parts", "lora") == trials_of(tmp_path / "whole", "lora")
    assert len({repr(call) for call in quick[begun:]} & {repr(call) for call in quick[learned:begun]}) == 0
    tune.run_tune(tmp_path / "other", True, [], ["lora"], 4, trials=12)
    assert trials_of(tmp_path / "other", "lora") != trials_of(tmp_path / "whole", "lora")


def test_what_is_known_of_others_stays_and_the_labs_own_copy_is_left_alone(quick, tmp_path):
    before = registry.TUNED.read_bytes() if registry.TUNED.exists() else b""
    tune.run_tune(tmp_path, True, ["acorn"], ["perfusion"], 0, trials=1)
    kept = tuning(tmp_path / "tuned.json")["methods"]["perfusion"]
    tune.run_tune(tmp_path, True, ["crate"], ["lora"], 0, trials=2)
    found = tuning(tmp_path / "tuned.json")["methods"]
    assert found["perfusion"] == kept
    assert found["lora"]["concepts"] == ["crate"]
    assert (len(found["lora"]["trials"]), found["lora"]["optuna"]) == (2, optuna.__version__)
    assert (registry.TUNED.read_bytes() if registry.TUNED.exists() else b"") == before
    with pytest.raises(InfusionError, match="nothing called 'dragon' is tuned"):
        tune.run_tune(tmp_path, True, [], ["dragon"], 0)


@pytest.fixture
def short(at_hand, monkeypatch):
    """Tuning of Textual Inversion for two steps on one concept, trained and drawn in earnest."""
    monkeypatch.setattr(tune, "BUDGETS", {"quick": replace(SHORT, trials=1)})
    few = replace(PUBLISHED["textual-inversion"], space=(Knob("steps", Span(1, MOST_STEPS)),))
    monkeypatch.setitem(tune.TUNABLE, "textual-inversion", few)


def test_a_trial_trains_draws_and_scores(short, tmp_path):
    tune.run_tune(tmp_path, True, [], ["textual-inversion"], 0)
    (trial,) = trials_of(tmp_path, "textual-inversion")
    assert (trial["settings"], trial["best"]) == ({"steps": 2}, ["headline", "likeness"])
    assert trial["picture_error"] == pytest.approx(trial["concept_error"] + trial["prompt_error"], rel=1e-3)
    assert 0 < trial["concept_error"] < 1


def test_a_training_that_diverges_is_the_worst_trial_and_no_error(short, tmp_path, monkeypatch):
    lost = {"denoising": torch.full((1,), torch.nan, requires_grad=True)}
    monkeypatch.setattr(BaselineObjective, "losses", lambda *_: lost)
    tune.run_tune(tmp_path, True, [], ["textual-inversion"], 0)
    (trial,) = trials_of(tmp_path, "textual-inversion")
    assert (trial["diverged"], trial["pruned"], trial["best"]) == (1, True, [])


def trial(headline, likeness, steps=100, pruned=False, **settings):
    found = {"picture_error": headline, "concept_error": likeness}
    return {"settings": {"steps": steps, **settings}, "pruned": pruned, **found}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Puts trials of LoRA in the lab's own copy."""

    def put(*trials):
        file = tmp_path / "tuned.json"
        file.write_text(json.dumps({"methods": {"lora": {"trials": trials}}}))
        monkeypatch.setattr(registry.tuning, "__defaults__", (file,))

    return put


def of_lora(most_steps=MOST_STEPS):
    return {m.key: m for m in all_methods(most_steps) if m.family == "lora"}


def test_tuned_recipes_stand_beside_the_published_one(tuned):
    tuned(
        trial(0.30, 0.20, learning_rate=1e-3, rank=16), trial(0.35, 0.10, 2000, weighting="velocity"),
        trial(0.01, 0.01, pruned=True), trial(0.4, 0.4, 50, part="keys and values"),
    )  # fmt: skip
    found = of_lora()
    assert [m.title for m in found.values()] == [
        "DreamBooth-LoRA, published", "DreamBooth-LoRA", "DreamBooth-LoRA, tuned for likeness",
    ]  # fmt: skip
    published = PUBLISHED["lora"].method.recipe
    assert found["lora-published"].recipe == published
    assert found["lora"].recipe == replace(published, learning_rate=1e-3, rank=16, steps=100)
    assert found["lora-likeness"].recipe == replace(published, weighting="velocity", steps=2000)
    short = of_lora(most_steps=60)
    assert set(short) == {"lora-published", "lora"}
    assert short["lora"].recipe.part == "keys and values"


def test_the_best_by_both_is_one_row_and_without_tuning_there_is_the_published_one_alone(tuned):
    tuned(trial(0.3, 0.1, learning_rate=1e-3), trial(0.4, 0.2))
    assert set(of_lora()) == {"lora-published", "lora"}
    tuned()
    assert set(of_lora()) == {"lora-published"}
    assert best_of([], "picture_error") is None
    keys = [m.key for m in all_methods(MOST_STEPS)]
    assert len({*keys}) == len(keys)
    assert keys[-3:] == ["infusion", "infusion-small", "infusion-plain"]


def test_a_method_is_chosen_with_all_its_recipes_or_one(tuned, tmp_path, monkeypatch):
    tuned(trial(0.3, 0.2), trial(0.4, 0.1, learning_rate=1e-3))
    chosen = []
    monkeypatch.setattr(run, "bench_for", lambda folder, scale, methods, *_: chosen.append([m.key for m in methods]))
    monkeypatch.setattr(run, "run", lambda *_: None)
    for asked in (["lora"], ["lora-likeness", "infusion"], ["infusion-small"]):
        run.run_lab(tmp_path, methods=asked)
    assert chosen == [
        ["lora-published", "lora", "lora-likeness"],
        ["lora-likeness", "infusion", "infusion-small", "infusion-plain"],
        ["infusion-small"],
    ]
    with pytest.raises(InfusionError, match="no method 'lora-tuned'"):
        run.run_lab(tmp_path, methods=["lora-tuned"])


def test_the_page_tells_every_trial(quick, tmp_path):
    tune.run_tune(tmp_path, True, [], ["lora"], 0)
    page = render_page(
        "lab.html.j2", TEMPLATES, tuning=tuning(tmp_path / "tuned.json")["methods"], concept=CONCEPTS["ember"],
        report={"mode": "quick", "scale": asdict(bench.QUICK)}, verdicts=[], tables={}, figures={}, strips={},
        photos=[], recipes=[], inline=str,
    )  # fmt: skip
    methods = tuning(tmp_path / "tuned.json")["methods"]
    trials = [trial for method in methods.values() for trial in method["trials"]]
    shown = page[page.index("<h3>Tuning</h3>") :]
    assert shown.count("<tr") == len(trials) + len(methods)
    assert shown.count("font-weight: bold") == sum(bool(t["best"]) for t in trials)
    assert shown.count("diverged") == 3 * sum("diverged" in t for t in trials)
    assert "steps 52" in shown
    assert "at most 52 steps" in shown


def test_infusions_knobs_reach_its_training(subjects, studio, monkeypatch):
    given = []

    def caught(*arguments):
        given.extend(arguments[3:])
        raise InfusionError("enough")

    monkeypatch.setattr(infusion, "trainer_for", caught)
    ours = TUNABLE["infusion"].method.changed(captions="one", times="uniform", bins=2)
    with pytest.raises(InfusionError, match="enough"):
        next(ours.train(studio, subjects, [7], seed=3))
    assert given == [
        ResidualSettings(times="uniform", bins=2, steps=7, snapshot_every=7, seed=3), ("a photo of a {}",)
    ]  # fmt: skip
    every = {f.name for f in fields(ResidualSettings)} | {"captions"}
    assert every - {"restraint"} == set(ours.knobs)  # a run without any is as it was before there was one
    assert every == set(ours.changed(restraint=MEASURED).knobs)
