"""APT as the lab trains it: its rungs, its snapshots, its study."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch

from infusion_core.attention import Plan
from infusion_core.denoiser import Conditioning
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.blend import draw_blended
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_core.training.residual import ResidualSettings
from infusion_lab.measures import BARE_SEED
from infusion_lab.methods.apt import RECIPE, Apt, ladder
from infusion_lab.methods.infusion import Infusion
from infusion_lab.report.lora_tables import apt_table
from infusion_lab.run import run
from infusion_lab.store import Row
from infusion_lab.studies import apt, restraints, several
from infusion_lab.tinyworld import subjects_of

from .test_run import TINY, bench

FAST = replace(RECIPE, batch_size=2, rank=2, learning_rate=1e-2, alpha=3.0)


def said(model, prompt):
    context = model.text.encode(prompt).conditioning.context
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.denoiser.predict(x, model.denoiser.sigmas[[500]], Conditioning(context), Plan())


def test_a_rung_has_the_restraints_below_it():
    assert [rung.key for rung in ladder()] == ["apt-plain", "apt-adaptive", "apt-stabilised", "apt"]
    on = [
        (
            r.climbed.restraint.augment,
            r.climbed.restraint.reweight,
            r.climbed.stabilisation > 0,
            r.climbed.alignment > 0,
        )
        for r in ladder()
    ]
    assert on == [(False,) * 4, (True, True, False, False), (True, True, True, False), (True,) * 4]
    assert not ladder()[0].climbed.compares
    assert len({str(rung.run_settings(9)) for rung in ladder()}) == 4
    assert Apt().run_settings(9) == Apt().run_settings(2000)
    assert Apt().changed(schedule="cosine").run_settings(9) != Apt().changed(schedule="cosine").run_settings(2000)


def test_what_a_run_learned_is_what_is_applied(studio, subjects):
    method = Apt(FAST)
    trainer, objective = method.trainer(studio, subjects[:1], 3)
    with objective.lora.installed():
        for _ in trainer.run():
            pass
        trained = replace(studio.base, denoiser=objective.denoiser)
        expected = said(trained, f"a {subjects[0].rare_word} circle")
    kept = list(method.train(studio, subjects[:1], [1, 3]))
    assert [snapshot.step for snapshot in kept] == [1, 3]
    customised = method.apply(studio, [kept[-1].learned])
    assert customised.phrases == (f"{subjects[0].rare_word} circle",)
    assert replace(method, naming="class word").apply(studio, [kept[-1].learned]).phrases == ("circle",)
    found = said(customised.model, f"a {subjects[0].rare_word} circle")
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)
    plain = said(studio.base, f"a {subjects[0].rare_word} circle")
    assert (found - plain).abs().max() > 20 * (found - expected).abs().max()
    assert torch.equal(said(studio.base, "a circle"), said(studio.base, "a circle"))


@pytest.fixture
def lab(rare, tmp_path):
    made = bench(rare, tmp_path)
    scale = replace(TINY, apt_steps=(1, 2), apt_concepts=1, max_steps=2, samples=5)
    return replace(made, scale=scale, methods=[Apt(), *made.methods])


def test_the_study_climbs_the_ladder_at_every_step(lab, monkeypatch):
    monkeypatch.setattr("infusion_lab.studies.apt.ladder", lambda: [replace(r, settings=FAST) for r in ladder()])
    cells = apt.cells(lab)
    keys = [rung.key for rung in ladder()] + ["infusion"]
    guided = [f"APT (+ alignment), guided by {guide}, alpha 0.02" for guide in ("base", "1 steps")]
    assert [cell.method for cell in cells] == [*(key for key in keys for _ in range(2)), *guided]
    assert len({cell.name for cell in cells}) == len(cells)
    assert apt.cells(replace(lab, methods=lab.methods[1:])) == [] or all(
        cell.method == "infusion" for cell in apt.cells(replace(lab, methods=lab.methods[1:]))
    )
    rows = [row for cell in cells[6:8] for row in cell.compute().rows]
    assert {row.study for row in rows} == {"apt"}
    assert {row.step for row in rows} == {1, 2}
    assert {row.measure for row in rows} >= {
        "concept_error", "prompt_error", "fisher", "diversity", "layout_repeated", "class_recall", "w2_class",
    }  # fmt: skip
    assert {row.concept for row in rows} == {next(iter(CONCEPTS))}
    assert subjects_of([CONCEPTS["ember"]])[0].name == rows[0].concept


@pytest.mark.parametrize("guide", ["base", "early"])
def test_the_last_step_is_guided_by_the_base_and_by_the_first_step(lab, guide, monkeypatch):
    monkeypatch.setattr("infusion_lab.studies.apt.ladder", lambda: [Apt(FAST)])
    cell = apt.cells(lab)[-2 if guide == "base" else -1]
    result, concept = cell.compute(), CONCEPTS["ember"]
    assert {(row.study, row.method, row.step) for row in result.rows} == {("apt", cell.method, 2)}
    assert "fisher" not in {row.measure for row in result.rows}  # of a pass, and guidance is of a run
    run = lab.train(Apt(FAST), subjects_of([concept]), (1, 2))
    first, last = (Apt(FAST).apply(lab.studio, [run[step][0]]) for step in (1, 2))
    early = lab.studio.base if guide == "base" else first.model
    drawn, _ = draw_blended(
        early, last.model, f"a photo of a {last.phrases[0]}", 5, BARE_SEED, lab.sampling, BlendSettings()
    )
    assert [np.asarray(p).tolist() for p in result.pictures.values()] == [np.asarray(p).tolist() for p in drawn[:3]]


def test_each_restraint_is_tried_alone_on_the_tuning_concepts(lab, monkeypatch, tmp_path):
    assert restraints.cells(lab) == []  # shorter runs would tell nothing
    monkeypatch.setattr(restraints, "STEPS", 2)
    tried = {name: method.settings for name, method in restraints.variants().items()}
    weights = {n: (s.restraint.augment, s.stabilisation, s.alignment) for n, s in tried.items()}
    assert weights["LoRA, unrestrained"] == (False, 0, 0)
    assert weights["adaptive"] == (True, 0, 0)
    assert weights["adaptive, stabilisation 0.1"] == (True, 0.1, 0)
    assert weights["adaptive, alignment 1"] == (True, 0, 1)
    assert tried["APT"] == replace(RECIPE, steps=2)
    assert not tried["LoRA, unrestrained"].compares
    cells = {cell.method: cell for cell in restraints.cells(lab)}
    assert {cell.concept for cell in cells.values()} == {"acorn"}
    assert len({cell.name for cell in cells.values()}) == len(tried) + 2
    names = "base: class word", "base: look in words", "LoRA, unrestrained", "adaptive, alignment 1"
    run(lab, [lambda bench: [cells[name] for name in names]], tmp_path, "tiny")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {row["study"] for row in rows} == {"restraints"}
    found = {(row["method"], row["measure"]): float(row["value"]) for row in rows if not row["prompt"]}
    assert found["adaptive, alignment 1", "fisher"] > 0
    told = json.loads((tmp_path / "report.json").read_text())["tables"]["restraints"][0]
    line = next(line for line in told["lines"] if line[0] == "adaptive, alignment 1")
    more = line[told["header"].index("Fisher divergence, against the plain LoRA's")]
    moved = [found[name, "fisher"] for name in ("adaptive, alignment 1", "LoRA, unrestrained")]
    assert float(more) == pytest.approx(moved[0] - moved[1], abs=0.006)
    assert "APT's restraints" in unescape((tmp_path / "index.html").read_text())


def test_one_concept_as_a_lora_and_one_as_residuals_are_in_one_picture(lab):
    methods = [Apt(FAST), Infusion(ResidualSettings(learning_rate=0.1, batch_size=2, steps=2))]
    lab = replace(lab, methods=methods, scale=replace(lab.scale, groups=(("ember", "wasp"), ("ember", "flag", "wasp"))))
    cells = several.cells(lab)
    assert [(c.method, c.concept) for c in cells if c.method == "apt+infusion"] == [("apt+infusion", "ember+wasp")]
    result = next(c for c in cells if c.method == "apt+infusion").compute()
    assert {row.prompt.split(":")[0] for row in result.rows} == {"ember", "wasp"}
    (prompt,) = result.pictures
    ember, wasp = (subject for subject in subjects_of([CONCEPTS["ember"], CONCEPTS["wasp"]]))
    assert f"{ember.rare_word} circle" in prompt
    assert "diamond" in prompt
    assert wasp.rare_word not in prompt
    lora = lab.train(methods[0], (ember,), [2])[2][0]
    residual = lab.train(methods[1], subjects_of([CONCEPTS["wasp"]]), [2])[2][0]
    model, concepts = methods[0].apply(lab.studio, [lora]).model, methods[1].apply(lab.studio, [residual]).concepts
    (expected,) = draw(model, prompt, concepts, 1, 0, lab.sampling)
    assert np.array_equal(np.asarray(result.pictures[prompt]), np.asarray(expected))
    for others in ((lab.studio.base, concepts), (model, ())):
        (other,) = draw(others[0], prompt, others[1], 1, 0, lab.sampling)
        assert not np.array_equal(np.asarray(result.pictures[prompt]), np.asarray(other))


def test_the_table_has_a_line_for_each_method_and_step():
    rows = [
        Row("apt", method, concept, step, "", 0, "fisher", value + (concept == "wasp"))
        for method, step, value in (("apt-plain", 5, 0.1), ("apt", 5, 0.2), ("apt-plain", 9, 0.3))
        for concept in ("ember", "wasp")
    ]
    made = apt_table(rows, {"apt-plain": "LoRA", "apt": "APT"})
    assert [line[0] for line in made.lines] == ["LoRA, 5 steps", "APT, 5 steps", "LoRA, 9 steps"]
    shown = {name: [line[i] for line in made.lines] for i, name in enumerate(made.header)}
    assert [cell.split()[0] for cell in shown["Fisher divergence, other concepts"]] == ["0.6", "0.7", "0.8"]
    more = shown["Fisher divergence, against the plain LoRA's"]
    assert more == ["", "+0.10 ± 0.00", ""]  # of the same step, concept by concept
