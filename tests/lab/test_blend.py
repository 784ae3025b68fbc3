"""The study of DreamBlend: which stages are measured, that they are what they say, and what is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infusion_core import advisor
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.blend import draw_blended
from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_core.embedded.tinyworld.captions import UNSEEN_ASPECTS, caption, unseen_scenes
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.report.blend_figure import blend_figure
from infusion_lab.report.claims import verdicts
from infusion_lab.report.lora_tables import blend_table
from infusion_lab.store import Row
from infusion_lab.studies import blend
from infusion_lab.tinyworld import subjects_of

from .test_run import TINY, bench

METHOD = PUBLISHED["dreambooth-plain"].method


@pytest.fixture(scope="module")
def lab(rare, tmp_path_factory):
    made = bench(rare, tmp_path_factory.mktemp("blend"))
    scale = replace(
        TINY, blend_steps=(1, 2, 4), blend_guides=(1,), blend_concepts=1, blend_prompts=1, blend_seeds=1, max_steps=4
    )
    return replace(made, scale=scale, methods=[METHOD, *made.methods])


def test_snapshots_alone_the_last_one_guided_and_the_papers_proportion():
    found = list(blend.stages((1, 2, 4), (0, 1)))
    assert [stage.late for stage in found if stage.early is None] == [1, 2, 4]
    guided = [stage for stage in found if stage.early is not None]
    assert {(stage.late, stage.early) for stage in guided} == {(4, 0), (4, 1)}
    assert [s for s in blend.stages((100, 400, 500), (0,)) if s.late == 400 and s.early == 100] == [
        blend.Stage(400, 100, BlendSettings())
    ]
    titles = [stage.title(METHOD) for stage in found]
    assert len({*titles}) == len(titles)
    assert "DreamBooth, no prior, 4 steps, guided by base, alpha 0.02" in titles
    assert "DreamBooth, no prior, 4 steps, guided by 1 steps, maps replaced, alpha 1" in titles


def test_only_runs_that_overfit_are_measured_at_every_stage(lab):
    found = blend.cells(lab)
    titles = [stage.title(METHOD) for stage in blend.stages((1, 2, 4), (0, 1))]
    assert [cell.method for cell in found] == [*titles, f"{METHOD.title}, as advised"]
    assert len({cell.name for cell in found}) == len(found)
    more = replace(lab, scale=replace(lab.scale, blend_prompts=2))
    assert not {cell.name for cell in found} & {cell.name for cell in blend.cells(more)}


def test_a_guided_stage_is_what_it_says(lab):
    ember, name = CONCEPTS["ember"], "DreamBooth, no prior, 4 steps, guided by 1 steps, alpha 0.04"
    (cell,) = [cell for cell in blend.cells(lab) if cell.method == name]
    result = cell.compute()
    run = lab.train(METHOD, subjects_of([ember]), (1, 2, 4))
    early, late = (METHOD.apply(lab.studio, [run[step][0]]) for step in (1, 4))
    (scene,) = unseen_scenes(ember, 1)
    prompt = caption(scene, UNSEEN_ASPECTS).replace(ember.shape, late.phrases[0])
    settings = BlendSettings(alpha=0.04)
    (expected,), _ = draw_blended(early.model, late.model, prompt, 1, 0, lab.sampling, settings)
    (shown,) = result.pictures.values()
    assert np.array_equal(shown, expected)
    assert {row.measure for row in result.rows} >= {"concept_error", "prompt_error", "diversity", "layout_repeated"}
    assert {row.step for row in result.rows} == {4}


def row(method, concept, error):
    return Row("blend", method, concept, 4, "", 0, "picture_error", error)


def test_the_verdict_holds_guidance_against_the_best_snapshot():
    name = METHOD.title
    errors = {f"{name}, 1 steps": 0.5, f"{name}, 2 steps": 0.3, f"{name}, 4 steps": 0.4,
              f"{name}, 4 steps, guided by base, alpha 0.02": 0.2, f"{name}, 4 steps, guided by base, alpha 0.04": 0.35,
              f"{name}, 4 steps, guided by 1 steps, alpha 0.02": 0.1}  # fmt: skip
    rows = [row(m, c, e + d) for m, e in errors.items() for c, d in (("ember", 0.0), ("wasp", 0.01), ("tent", 0.03))]
    found = [v for v in verdicts(rows, {}) if v.claim.startswith("Guided")]
    assert [v.verdict for v in found] == ["reproduced", "reproduced"]
    assert all(v.against == f"{name}, 2 steps" for v in found)
    assert "0.213 against 0.313, advantage 0.1 (" in found[0].figures
    assert "guided by 1 steps, alpha 0.02" in found[1].claim
    worse = [replace(r, value=1 - r.value) if "guided" in r.method else r for r in rows]
    assert [v.verdict for v in verdicts(worse, {}) if v.claim.startswith("Guided")] == ["refuted", "refuted"]
    assert [line[0] for line in blend_table(rows).lines] == list(errors)


def test_the_advisors_choice_is_held_against_the_best_of_the_grid():
    name = METHOD.title
    errors = {f"{name}, 4 steps": 0.4, f"{name}, 4 steps, guided by base, alpha 0.02": 0.2, f"{name}, 2 steps": 0.3}
    concepts = ("ember", "wasp", "tent", "comet", "flag", "orchid")
    rows = [row(method, concept, error) for method, error in errors.items() for concept in concepts]
    for misses, verdict in ((1, "reproduced"), (2, "refuted")):
        advised = [row(f"{name}, as advised", c, 0.22 if i < misses else 0.209) for i, c in enumerate(concepts)]
        (found,) = [v for v in verdicts(rows + advised, {}) if "advisor" in v.claim]
        assert found.verdict == verdict
        assert found.figures.startswith(f"{6 - misses} of 6 concepts")
        assert "ember +10%" in found.figures
    assert not any("as advised" in v.against for v in verdicts(rows + advised, {}))


def test_what_the_advisor_chose_is_scored_like_every_stage(lab, monkeypatch):
    seen = []

    def choose(alone, tried):
        seen.append((alone, tried))
        return advisor.Advice(advisor.Setup("4", "1", 0.04), "because")

    monkeypatch.setattr(advisor, "advise", choose)
    cells = {cell.method: cell for cell in blend.cells(lab)}
    found = cells[f"{METHOD.title}, as advised"].compute().rows
    alike = cells[f"{METHOD.title}, 4 steps, guided by 1 steps, alpha 0.04"].compute().rows

    def figures(rows):
        return [(r.prompt, r.seed, r.measure, r.value) for r in rows if r.prompt or r.measure == "diversity"]

    assert figures(found)[: len(figures(alike))] == figures(alike)
    told = {r.measure: r.value for r in found if r.measure in ("late", "early", "alpha")}
    assert told == {"late": 4, "early": 1, "alpha": 0.04}
    ((alone, tried),) = seen
    assert [judged.setup.late for judged in alone] == ["base", "1", "2", "4"]
    assert {judged.setup.late for judged in tried} <= {"1", "2", "4"}
    collapse = {r.method: r.value for r in found if r.measure == "collapse"}
    assert collapse == {f"{METHOD.title}, {j.setup.late} steps": j.collapse for j in alone[1:]}


def test_the_figure_has_snapshots_in_a_line_and_what_guides_beside_it():
    name = METHOD.title
    values = {f"{name}, 2 steps": (0.4, 0.3), f"{name}, 4 steps": (0.2, 0.9),
              f"{name}, 4 steps, guided by base, alpha 0.02": (0.25, 0.5),
              f"{name}, 4 steps, guided by base, maps replaced, alpha 1": (0.21, 0.6),
              f"{name}, as advised": (0.5, 0.5)}  # fmt: skip
    rows = [
        replace(row(method, concept, value + shift), measure=measure)
        for method, (error, repeated) in values.items()
        for concept, shift in (("ember", 0.0), ("wasp", 0.1))
        for measure, value in (("picture_error", error), ("layout_repeated", repeated))
    ]
    rows += [replace(row(f"{name}, {step} steps", "ember", step / 100), measure="collapse") for step in (2, 4)]
    trade, collapse = blend_figure(rows).axes
    line, *guided = trade.lines
    assert line.get_xydata().tolist() == [pytest.approx([0.35, 0.45]), pytest.approx([0.95, 0.25])]
    assert [(mark.get_marker(), *mark.get_xydata()[0].round(6)) for mark in guided] == [
        ("x", 0.55, 0.3), ("s", 0.65, 0.26),
    ]  # fmt: skip
    assert collapse.lines[0].get_xydata().tolist() == [[2, 0.02], [4, 0.04]]
    assert blend_figure([]) is None
