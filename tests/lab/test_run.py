"""The lab as a whole, very small: resuming, the files it writes, the page, the choice of settings."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tinyworld import CONCEPTS, Scene, Thing, render
from infusion_core.errors import InfusionError
from infusion_lab.bench import QUICK, Bench
from infusion_lab.methods.infusion import Infusion
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.report.claims import OPEN, REFUTED, REPRODUCED, verdicts
from infusion_lab.report.intervals import over_prompts, within_concepts
from infusion_lab.report.tables import ablation_table, cell, figures, with_trade
from infusion_lab.run import run
from infusion_lab.store import Cell, Result, Row, Store
from infusion_lab.studies import ablations, curves, fidelity, several, toy
from infusion_lab.studio import Studio
from infusion_lab.tune import choose

TINY = replace(
    QUICK, prompts=1, seeds=1, max_steps=2, marks=(1, 2), class_pictures=2, samples=2, fisher_prompts=2, fisher_draws=2,
    groups=(("ember", "wasp"),), group_prompts=1, concepts=("ember",),
)  # fmt: skip
STUDIES = [curves.cells, fidelity.cells, several.cells]


def bench(tinyworld, folder):
    methods = [PUBLISHED["lora"].method, PUBLISHED["perfusion"].method, Infusion()]
    studio = Studio(tinyworld, folder / "studio", TINY.class_pictures)
    return Bench(studio, Store(folder), TINY, methods, sampling=SampleSettings(2, 3.0))


@pytest.fixture(scope="module")
def finished(tinyworld, tmp_path_factory):
    out = tmp_path_factory.mktemp("lab")
    run(bench(tinyworld, out / "tiny"), STUDIES, out, "tiny")
    return out


def test_a_stopped_run_goes_on_to_the_same_csv(tinyworld, finished, tmp_path):
    lab = bench(tinyworld, tmp_path / "tiny")
    cells = [c for study in STUDIES for c in study(lab)]
    for one in cells[:5]:
        lab.store.result(one)
    stopped = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    run(lab, STUDIES, tmp_path, "tiny")
    assert (tmp_path / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    assert all(p.stat().st_mtime_ns == at for p, at in stopped.items())


def test_a_report_of_what_is_finished_computes_nothing(tinyworld, tmp_path):
    lab = bench(tinyworld, tmp_path / "tiny")
    with pytest.raises(InfusionError, match="nothing is finished"):
        run(lab, STUDIES, tmp_path, "tiny", finished=True)
    first = fidelity.cells(lab)[0]
    lab.store.result(first)
    run(lab, STUDIES, tmp_path, "tiny", finished=True)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {(r["study"], r["method"]) for r in rows} == {("fidelity", first.method)}


def test_the_csv_is_tidy(finished):
    rows = list(csv.DictReader((finished / "results.csv").open()))
    assert {r["study"] for r in rows} == {"steps", "fidelity", "several"}
    assert {"lora", "perfusion", "infusion"} < {r["method"] for r in rows}
    keys = [tuple(v for k, v in r.items() if k != "value") for r in rows]
    assert len(set(keys)) == len(keys)
    assert all(np.isfinite(float(r["value"])) for r in rows)
    untouched = [r for r in rows if r["measure"] == "fisher" and r["method"] == "infusion"]
    assert untouched
    assert all(float(r["value"]) == 0 for r in untouched)


def test_the_page_stands_alone(finished):
    class Page(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.sources = [], []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br", "html"):
                self.open.append(tag)
            self.sources += [value for name, value in attributes if name in ("src", "href")]

        def handle_endtag(self, tag):
            if tag != "html":
                assert self.open.pop() == tag

    page = Page()
    page.feed((finished / "index.html").read_text())
    assert not page.open
    assert len(page.sources) > 20
    assert (finished / "several.png").stat().st_size > 1000
    assert all(s.startswith("data:image/png;base64,") for s in page.sources)
    report = json.loads((finished / "report.json").read_text())
    assert report["claims"]
    assert set(report["tables"]) == {"steps", "fidelity", "several"}


def test_every_ablation_differs_from_infusion_as_it_is():
    settings = [v.method for v in ablations.variants()]
    assert all(s != settings[0] for s in settings[1:])
    assert len({v.name for v in ablations.variants()}) == len(settings)


def test_ablations_are_held_against_infusion_concept_by_concept():
    errors = {"Infusion": (0.1, 0.5), "4 bins": (0.13, 0.51)}
    rows = [row for name, values in errors.items() for row in rows_of("ablations", "concept_error", **{name: values})]
    shown = ablation_table(rows)
    told = {line[0]: dict(zip(shown.header, line, strict=True)) for line in shown.lines}
    assert told["4 bins"]["concept error, against Infusion's"] == "+0.020 ± 0.127"  # t(0.975, 1) = 12.706 times 0.01
    assert told["Infusion"]["concept error, against Infusion's"] == ""


def test_leakage_is_told_from_exact_pictures():
    group = [CONCEPTS["ember"], CONCEPTS["flag"]]
    scene = Scene((Thing("circle", "small", "left"), Thing("square", "small", "right")), "pink", "plain")
    right = render(scene, group)
    swapped = render(
        scene, [replace(group[0], look=group[1].look), replace(group[1], look=group[0].look)]
    )  # each thing wears the other's look
    for picture, worn in ((right, "ember"), (swapped, "flag")):
        errors = several.errors_against(picture, scene, group[0], group)
        assert min(errors, key=errors.get) == worn
        assert errors[worn] < 0.04


def rows_of(study, measure, prompts=("",), **values):
    return [
        Row(study, method, str(i), 1, prompt, 0, measure, v + j / 1000)
        for method, per_concept in values.items()
        for i, v in enumerate(per_concept)
        for j, prompt in enumerate(prompts)
    ]


def test_verdicts_need_intervals_without_zero():
    def verdict(infusion, lora):
        rows = rows_of("several", "leaked", infusion=infusion, lora=lora)
        pairs = [replace(row, concept=f"{row.concept}+ember") for row in rows]
        three = [replace(r, concept="a+b+c", value=1.0 - (r.method == "lora")) for r in rows[:: len(infusion)]]
        return verdicts([*pairs, *three], {})[0].verdict  # three concepts do not count

    assert verdict([0.1, 0.12, 0.11], [0.5, 0.52, 0.54]) == REPRODUCED
    assert verdict([0.5, 0.52, 0.54], [0.1, 0.12, 0.11]) == REFUTED
    assert verdict([0.1, 0.6, 0.3], [0.5, 0.2, 0.35]) == OPEN
    assert verdict([0.1], [0.5]) == OPEN


def front(**positions):
    """The verdict on the front, of methods with these position errors (px) and concept errors, over three concepts."""
    rows = []
    for method, (px, concept_error) in positions.items():
        for measure, value in (("concept_error", concept_error), ("scene_error", 0.01), ("position_error", px)):
            rows += rows_of("fidelity", measure, prompts=("p", "q", "r"), **{method: [value] * 3})
    return next(v for v in verdicts(rows, {}) if "Pareto" in v.claim)


def test_the_front_needs_three_baselines_left_behind():
    behind = {"lora": (9.0, 0.05), "perfusion": (2.0, 0.3), "dreambooth": (2.0, 0.2)}
    found = front(infusion=(2.0, 0.1), **behind)
    assert found.verdict == REPRODUCED
    assert "lora (prompt error), perfusion (concept error), dreambooth (concept error)" in found.figures
    assert front(infusion=(2.0, 0.1), lora=(9.0, 0.05), perfusion=(2.0, 0.3)).verdict == OPEN
    beaten = front(infusion=(2.0, 0.1), **behind, textual=(1.9, 0.09))
    assert beaten.verdict == REFUTED
    assert "better in both: textual" in beaten.figures


def test_intervals_over_prompts_hold_the_truth_19_times_in_20():
    """Two concepts of other means and spreads; the truth is the mean of both."""
    rng, truth = np.random.default_rng(0), 0.3
    held = 0
    for _ in range(2000):
        drawn = {"a": rng.normal(0.1, 0.05, 12), "b": rng.normal(0.5, 0.2, 8)}
        mean, low, high = over_prompts({c: {str(i): v for i, v in enumerate(x)} for c, x in drawn.items()})
        assert mean == pytest.approx((drawn["a"].mean() + drawn["b"].mean()) / 2)
        held += low < truth < high
    assert 0.93 < held / 2000 < 0.965


def test_intervals_within_concepts_leave_out_how_hard_a_concept_is():
    hard = np.array([0.1, 0.9, 0.5, 0.3])
    noise = np.array([[0.01, -0.02, 0.0, 0.015], [-0.005, 0.02, 0.01, -0.01], [0.0, 0.01, -0.02, 0.005]])
    table = {f"m{i}": dict(zip("abcd", hard + row + i / 10, strict=True)) for i, row in enumerate(noise)}
    values = np.array([list(by.values()) for by in table.values()])
    normed = values - values.mean(0) + values.mean()
    half = stats.t.ppf(0.975, 3) * stats.sem(normed, axis=1) * np.sqrt(3 / 2)
    for i, (mean, low, high) in enumerate(within_concepts(table).values()):
        assert (mean, high - mean, mean - low) == pytest.approx((values[i].mean(), half[i], half[i]))
    assert half.max() < 0.1 < stats.t.ppf(0.975, 3) * stats.sem(values[0])  # much narrower than a plain one
    assert within_concepts({"m": {"a": 1.0}, "n": {"b": 1.0}}) == {}


def test_the_gap_is_a_share():
    rows = rows_of("fidelity", "concept_error", **{
        "base: class word": [0.4, 0.3], "base: look in words": [0.1, 0.1], "lora": [0.25, 0.1]
    })  # fmt: skip
    gaps = with_trade(figures(rows, "fidelity"))["lora", "gap_closed"]
    assert gaps == pytest.approx({"0": 0.5, "1": 1.0})
    assert cell({"0": 1.0}, ".1f") == "1.0"
    assert cell({"0": 1.0, "1": 2.0}, ".2f") == "1.50 ± 6.35"  # t(0.975, 1) = 12.706 times 0.5


def test_tuning_chooses_the_least_objective():
    rows = [
        Row("tune", f"lora lr {rate}", "acorn", step, "", 0, measure, value)
        for rate, step, concept_error, px in (("0.001", 50, 0.3, 0.0), ("0.01", 100, 0.2, 128.0 * 0.05))
        for measure, value in {"concept_error": concept_error, "scene_error": 0.0, "position_error": px}.items()
    ]  # fmt: skip
    chosen = [line for line in choose(rows) if line["chosen"]]
    assert [(c["learning_rate"], c["steps"], c["objective"]) for c in chosen] == [(0.01, 100, pytest.approx(0.25))]


def test_toy_residual_leaves_the_other_class_alone_and_keeps_the_spread(monkeypatch):
    monkeypatch.setattr(toy, "SAMPLES", 400)
    spread = toy.worlds()[1]
    rows = {(r.method, r.measure): r.value for r in toy._measure(0, spread).rows}
    assert rows[toy.OWN, "w2_class_b"] < 1e-9
    assert rows[toy.FULL, "w2_class_b"] > 0.05
    assert rows[toy.OWN, "spread_kept"] > 0.8
    assert rows[toy.FULL, "spread_kept"] < 0.3


def test_half_written_cells_do_not_count(tmp_path):
    store = Store(tmp_path)

    def fail():
        raise InfusionError("the disk is full")

    one = Cell("steps", "lora", "ember", 1, fail)
    with pytest.raises(InfusionError):
        store.result(one)
    again = replace(one, compute=lambda: Result([Row("steps", "lora", "ember", 1, "", 0, "fisher", 0.5)]))
    assert store.result(again).rows == store.result(one).rows  # the second time from the file
