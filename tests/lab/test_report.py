"""What the report makes of rows: figures, intervals, verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from infusion_lab.bench import FULL, Bench
from infusion_lab.methods.registry import all_methods
from infusion_lab.report.claims import OPEN, REFUTED, REPRODUCED, verdicts
from infusion_lab.report.figures import COLOURS, curves_figure
from infusion_lab.report.intervals import Unit, interval, over_prompts, within_concepts
from infusion_lab.report.page import recipes
from infusion_lab.report.tables import ablation_table, cell, figures, together, with_trade
from infusion_lab.store import Row, Store


def test_leakage_is_held_against_what_was_learned():
    def of(method, own, other):
        return rows_of("several", "own_share", **{method: own}) + rows_of("several", "other_share", **{method: other})

    rows = of("good", [0.8, 0.4], [0.08, 0.1]) + of("nothing", [0.05, 0.5], [0.05, 0.25])
    found = together([replace(row, concept=f"{row.concept}+ember") for row in rows], 2)
    assert found["good", "leaked"] == pytest.approx({Unit("0+ember"): 0.1, Unit("1+ember"): 0.25}, abs=0.01)
    assert found["nothing", "leaked"] == pytest.approx(
        {Unit("1+ember"): 0.5}, abs=0.01
    )  # the other pair learned too little


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


def test_what_an_unfinished_run_says_is_one_figure_everywhere():
    """A seed that one concept lacks counts nowhere: neither in the means nor in the difference."""
    rows = [
        Row("fidelity", method, str(concept), 1, "", 0, "picture_error", value + 0.1 * concept, seed)
        for method, value in (("infusion", 0.1), ("lora", 0.4))
        for concept in range(3)
        for seed in range(3 if concept == 2 else 1)
    ]
    (found,) = [v for v in verdicts(rows, {}) if "less wrong" in v.claim]
    assert found.figures.startswith("picture error: 0.2 against 0.5, advantage 0.3 (")


@pytest.mark.parametrize(("in_fidelity", "verdict"), [(0.0, REPRODUCED), (0.5, REFUTED)])
def test_other_prompts_must_be_what_they_were_in_every_study(in_fidelity, verdict):
    rows = rows_of("steps", "fisher", infusion=[0.0, 0.0]) + rows_of("fidelity", "fisher", infusion=[0.0, in_fidelity])
    (found,) = [v for v in verdicts(rows, {}) if "stay exactly" in v.claim]
    assert found.verdict == verdict


def test_the_advisor_is_judged_where_all_of_the_grid_was_drawn():
    advised = rows_of("blend", "picture_error", **{"LoRA, as advised": [0.1, 0.2]})
    assert [v for v in verdicts(advised, {}) if "advisor" in v.claim] == []
    grid = rows_of("blend", "picture_error", **{"LoRA, 100 steps": [0.1], "LoRA, 500 steps": [0.2, 0.1]})
    (found,) = [v for v in verdicts([*advised, *grid], {}) if "advisor" in v.claim]
    assert found.figures.startswith("1 of 1 concepts")


def front(**positions):
    """The verdict on the front, of methods with these prompt errors (px) and concept errors, over three concepts."""
    rows = []
    for method, (px, concept_error) in positions.items():
        for measure, value in (("concept_error", concept_error), ("prompt_error", px / 128)):
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


def test_a_baseline_is_left_behind_if_all_its_recipes_are():
    behind = {"lora": (9.0, 0.05), "perfusion": (2.0, 0.3), "dreambooth": (2.0, 0.2)}
    assert front(infusion=(2.0, 0.1), **behind, **{"lora-published": (9.0, 0.3)}).verdict == REPRODUCED
    assert front(infusion=(2.0, 0.1), **behind, **{"lora-published": (2.0, 0.2), "lora-likeness": (1.9, 0.1005)}
                 ).verdict == OPEN  # fmt: skip
    assert front(infusion=(2.0, 0.1), **behind, **{"lora-likeness": (1.9, 0.09)}).verdict == REFUTED


def test_the_strongest_recipe_of_a_baseline_is_compared():
    """By concept error where likeness is claimed, by picture error elsewhere."""
    rows = []
    for method, (concept_error, picture_error) in {
        "base: class word": (0.4, 0.5), "base: look in words": (0.0, 0.1), "infusion": (0.2, 0.3),
        "lora-published": (0.35, 0.45), "lora": (0.25, 0.28), "lora-likeness": (0.1, 0.6),
    }.items():  # fmt: skip
        for measure, value in (("concept_error", concept_error), ("picture_error", picture_error)):
            rows += rows_of("fidelity", measure, **{method: [value, value + 0.01, value + 0.02]})
    rows += rows_of("steps", "w2_class", **{"infusion": [1, 2, 3], "lora": [9, 8, 9], "lora-published": [0, 0, 0]})
    found = verdicts(rows, {})
    assert {(v.claim.split(" ", 1)[1], v.against) for v in found if v.claim.startswith("infusion ")} == {
        ("draws the concept better than", "lora-likeness"),
        ("has less wrong with a picture, likeness and prompt together, than", "lora"),
    }
    (moved,) = [v for v in found if "2-Wasserstein" in v.claim]
    assert moved.against == "lora"


def crossed(table):
    return {Unit(str(c), s): v for c, row in enumerate(table) for s, v in enumerate(row)}


def test_intervals_over_concepts_and_training_seeds_hold_the_truth_19_times_in_20():
    """Where seeds move every concept alike, Student's t over the concepts' means alone would hold it far too rarely."""
    rng, truth, runs = np.random.default_rng(1), 0.3, 400
    for by_concept, by_seed, left in ((0.1, 0.0, 0.05), (0.1, 0.1, 0.02), (0.1, 0.03, 0.1)):
        held = plain = 0
        for _ in range(runs):
            table = truth + by_concept * rng.normal(size=(8, 1)) + by_seed * rng.normal(size=(1, 3))
            table = table + left * rng.normal(size=(8, 3))
            span, alone = interval(crossed(table)), stats.t.interval(
                0.95, 7, table.mean(1).mean(), stats.sem(table.mean(1)))  # fmt: skip
            assert span.mean == pytest.approx(table.mean())
            held += span.low < truth < span.high
            plain += alone[0] < truth < alone[1]
        assert 0.92 < held / runs < 0.995
        assert by_seed < 0.1 or plain / runs < 0.85


def test_an_interval_of_a_table_by_hand():
    """Concepts 1 and 3, seeds -2, 0 and 2 on top and nothing left: mean squares 6, 8 and 0."""
    span = interval(crossed([[-1.0, 1.0, 3.0], [1.0, 3.0, 5.0]]))
    half = stats.t.ppf(0.975, 14**2 / (6**2 / 1 + 8**2 / 2)) * np.sqrt(14 / 6)
    alone = stats.t.ppf(0.975, 1) * 1.0  # over the concepts' means 1 and 3
    assert half < alone
    assert (span.mean, span.half, span.mean - span.low) == pytest.approx((2.0, alone, alone))
    many = [[-1.0, 1.0, 3.0], [1.0, 3.0, 5.0], [0.0, 2.0, 4.0]]  # mean squares 3, 12 and 0
    wide = stats.t.ppf(0.975, 15**2 / (3**2 / 2 + 12**2 / 2)) * np.sqrt(15 / 9)
    assert interval(crossed(many)).half == pytest.approx(wide)
    assert wide > stats.t.ppf(0.975, 2) * stats.sem([1, 3, 2])


def test_seeds_that_some_concept_lacks_do_not_count():
    table = {Unit("a", 0): 1.0, Unit("b", 0): 3.0, Unit("a", 1): 100.0}
    assert interval(table) == interval({Unit("a"): 1.0, Unit("b"): 3.0})
    apart = interval({Unit("a", 0): 1.0, Unit("b", 1): 3.0})
    assert (apart.mean, apart.half) == pytest.approx((2.0, stats.t.ppf(0.975, 1)))
    assert interval({Unit("a", 0): 1.0, Unit("a", 1): 3.0}).half == 0  # one concept says nothing of others


def test_recipes_of_a_family_have_its_colour_and_lines_of_their_own():
    rows = rows_of("steps", "prompt_error", **{"lora": [0.1], "lora-published": [0.2], "lora-likeness": [0.3]})
    containers = [c for axes in curves_figure(rows, {}).axes for c in axes.containers]
    drawn = {c.get_label(): c.lines[0] for c in containers}
    assert {line.get_color() for line in drawn.values()} == {COLOURS["lora"]}
    assert {name: (line.get_marker(), line.get_linestyle()) for name, line in drawn.items()} == {
        "lora": ("o", "-"), "lora-published": ("x", ":"), "lora-likeness": ("^", "--"),
    }  # fmt: skip


def test_each_method_says_where_its_own_settings_come_from(studio, tmp_path):
    methods = all_methods(FULL.max_steps)
    told = recipes(Bench(studio, Store(tmp_path), FULL, methods))
    sources = {method.family: line["source"] for method, line in zip(methods, told, strict=True)}
    assert len({*sources.values()}) == len(sources)
    assert sources["infusion"] == "the project's defaults"


def test_intervals_over_prompts_hold_the_truth_19_times_in_20():
    """Two concepts of other means and spreads; the truth is the mean of both."""
    rng, truth = np.random.default_rng(0), 0.3
    held = 0
    for _ in range(2000):
        drawn = {"a": rng.normal(0.1, 0.05, 12), "b": rng.normal(0.5, 0.2, 8)}
        span = over_prompts({c: {str(i): v for i, v in enumerate(x)} for c, x in drawn.items()})
        assert span.mean == pytest.approx((drawn["a"].mean() + drawn["b"].mean()) / 2)
        held += span.low < truth < span.high
    assert 0.93 < held / 2000 < 0.965


def test_intervals_within_concepts_leave_out_how_hard_a_concept_is():
    hard = np.array([0.1, 0.9, 0.5, 0.3])
    noise = np.array([[0.01, -0.02, 0.0, 0.015], [-0.005, 0.02, 0.01, -0.01], [0.0, 0.01, -0.02, 0.005]])
    table = {f"m{i}": dict(zip(map(Unit, "abcd"), hard + row + i / 10, strict=True)) for i, row in enumerate(noise)}
    values = np.array([list(by.values()) for by in table.values()])
    normed = values - values.mean(0) + values.mean()
    half = stats.t.ppf(0.975, 3) * stats.sem(normed, axis=1) * np.sqrt(3 / 2)
    for i, span in enumerate(within_concepts(table).values()):
        assert (span.mean, span.half, span.mean - span.low) == pytest.approx((values[i].mean(), half[i], half[i]))
    assert half.max() < 0.1 < stats.t.ppf(0.975, 3) * stats.sem(values[0])  # much narrower than a plain one
    assert within_concepts({"m": {Unit("a"): 1.0}, "n": {Unit("b"): 1.0}}) == {}


def test_the_gap_is_a_share():
    rows = rows_of("fidelity", "concept_error", **{
        "base: class word": [0.4, 0.3], "base: look in words": [0.1, 0.1], "lora": [0.25, 0.1]
    })  # fmt: skip
    gaps = with_trade(figures(rows, "fidelity"))["lora", "gap_closed"]
    assert gaps == pytest.approx({Unit("0"): 0.5, Unit("1"): 1.0})
    assert cell({Unit("0"): 1.0}, ".1f") == "1.0"
    assert cell({Unit("0"): 1.0, Unit("1"): 2.0}, ".2f") == "1.50 ± 6.35"  # t(0.975, 1) = 12.706 times 0.5


def test_the_scene_ratio_is_of_the_same_concept():
    rows = rows_of("fidelity", "scene_error", **{"base: class word": (0.01, 0.03), "lora": (0.02, 0.03)})
    ratios = with_trade(figures(rows, "fidelity"))["lora", "scene_ratio"]
    assert ratios == pytest.approx({Unit("0"): 2.0, Unit("1"): 1.0})


def test_ablations_are_held_against_infusion_concept_by_concept():
    errors = {"Infusion": (0.1, 0.5), "4 bins": (0.13, 0.51)}
    rows = [row for name, values in errors.items() for row in rows_of("ablations", "concept_error", **{name: values})]
    shown = ablation_table(rows)
    told = {line[0]: dict(zip(shown.header, line, strict=True)) for line in shown.lines}
    assert told["4 bins"]["concept error, against Infusion's"] == "+0.020 ± 0.127"  # t(0.975, 1) = 12.706 times 0.01
    assert told["Infusion"]["concept error, against Infusion's"] == ""
