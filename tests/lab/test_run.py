"""The lab as a whole, very small: resuming, the files it writes, the page, tuning."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infusion_core.embedded.sampling import SampleSettings
from infusion_core.errors import InfusionError
from infusion_lab.bench import FULL, QUICK, Bench
from infusion_lab.measures import CLASS_WORD, LOOK_IN_WORDS
from infusion_lab.methods.infusion import Infusion
from infusion_lab.methods.registry import PUBLISHED
from infusion_lab.report import page
from infusion_lab.run import STUDIES, _of_concepts, run, studies_for
from infusion_lab.store import Cell, Result, Row, Store
from infusion_lab.studies import ablations, apt, curves, fidelity, several, toy
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import some_captions

TINY = replace(
    QUICK, prompts=1, seeds=1, max_steps=2, snapshot_steps=(1, 2), curve_prompts=1, class_pictures=2, samples=2,
    fisher_prompts=2, fisher_draws=2, groups=(("ember", "wasp"),), group_prompts=1, concepts=("ember",),
    ablation_prompts=1,
)  # fmt: skip
SOME = [curves.cells, fidelity.cells, several.cells]


def bench(model, folder):
    methods = [PUBLISHED["lora"].method, Infusion()]  # one joint, one that learns concepts apart
    studio = Studio(model, folder / "studio", some_captions()[:50], TINY.class_pictures)
    return Bench(studio, Store(folder), TINY, methods, sampling=SampleSettings(2, 3.0))


@pytest.fixture(scope="module")
def finished(rare, tmp_path_factory):
    out = tmp_path_factory.mktemp("lab")
    run(bench(rare, out / "tiny"), SOME, out, "tiny")
    return out


def test_a_stopped_run_goes_on_to_the_same_csv(rare, finished, tmp_path):
    """A run that stopped after three cells of one study, against the whole lab's rows of that study."""
    lab = bench(rare, tmp_path / "tiny")
    for one in fidelity.cells(lab)[:3]:
        lab.store.result(one)
    stopped = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    run(lab, [fidelity.cells], tmp_path, "tiny")
    header, *rows = (finished / "results.csv").read_text().splitlines()
    assert (tmp_path / "results.csv").read_text().splitlines() == [header, *(r for r in rows if "fidelity" in r)]
    assert all(p.stat().st_mtime_ns == at for p, at in stopped.items())


def test_a_report_of_what_is_finished_computes_nothing(rare, tmp_path):
    lab = bench(rare, tmp_path / "tiny")
    with pytest.raises(InfusionError, match="nothing is finished"):
        run(lab, SOME, tmp_path, "tiny", finished=True)
    first = fidelity.cells(lab)[0]
    lab.store.result(first)
    run(lab, SOME, tmp_path, "tiny", finished=True)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {(r["study"], r["method"]) for r in rows} == {("fidelity", first.method)}


def test_what_has_no_part_for_what_was_chosen_is_not_called_unfinished(rare, tmp_path):
    lab = replace(bench(rare, tmp_path / "tiny"), scale=replace(TINY, groups=(), apt_steps=(25, 100)))
    with pytest.raises(InfusionError, match="there is nothing to compute"):
        run(lab, [several.cells, apt.cells], tmp_path, "tiny")


def test_chosen_concepts_are_all_that_any_study_takes():
    scale = _of_concepts(FULL, ["acorn"])
    assert (scale.concepts, scale.ablation_concepts, scale.groups) == ((), ("acorn",), ())
    five = ["ember", "wasp", "tent", "flag", "comet"]
    scale = _of_concepts(FULL, five)
    assert (scale.concepts, scale.ablation_concepts) == (tuple(five), ())
    assert (scale.curve_concepts, scale.blend_concepts, scale.apt_concepts) == (5, 5, 5)
    assert scale.groups == (("ember", "flag"),)
    assert _of_concepts(FULL, []) == FULL


def test_the_csv_is_tidy(finished):
    rows = list(csv.DictReader((finished / "results.csv").open()))
    assert {r["study"] for r in rows} == {"steps", "fidelity", "several"}
    assert {"lora", "infusion"} < {r["method"] for r in rows}
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
    assert len(page.sources) > 15
    assert (finished / "several.png").stat().st_size > 1000
    assert all(s.startswith("data:image/png;base64,") for s in page.sources)
    report = json.loads((finished / "report.json").read_text())
    assert report["claims"]
    assert set(report["tables"]) == {"steps", "fidelity", "several"}


def test_a_method_learns_with_every_training_seed_and_draws_from_the_same_seeds(rare, tmp_path):
    lab = bench(rare, tmp_path / "tiny")
    lab = replace(lab, scale=replace(TINY, training_seeds=2), methods=[Infusion()], seed=5)
    cells = fidelity.cells(lab)
    assert len({c.name for c in cells}) == len(cells) == 4  # two yardsticks, a method twice
    run(lab, [fidelity.cells], tmp_path, "tiny")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    ours = [r for r in rows if r["method"] == "infusion" and r["measure"] == "concept_error"]
    assert [(r["training_seed"], r["seed"]) for r in ours] == [("5", "5"), ("6", "5")]
    assert ours[0]["value"] != ours[1]["value"]
    assert {r["training_seed"] for r in rows if r["method"].startswith("base")} == {"0"}
    costs = list(csv.DictReader((tmp_path / "costs.csv").open()))
    assert [r["training_seed"] for r in costs if r["measure"] == "training_seconds"] == ["5", "6"]
    once = replace(lab, scale=TINY)
    assert {c.name for c in fidelity.cells(once)} < {c.name for c in cells}  # the first seed's cells are shared
    keys = [tuple(v for k, v in r.items() if k != "value") for r in rows]
    assert len({*keys}) == len(keys)


def test_every_ablation_differs_from_infusion_as_it_is():
    told = [repr((m.run_settings(m.steps), m.application)) for m in ablations.variants().values()]
    assert len({*told}) == len(told)  # by what is done, not by what a row is called


def test_studies_run_in_an_order_of_their_own():
    assert studies_for([]) == list(STUDIES.values())
    assert studies_for([ablations.STUDY, "steps"]) == [curves.cells, ablations.cells]
    with pytest.raises(InfusionError, match="no study 'layout'"):
        studies_for(["layout"])


def test_the_study_of_ablations_shows_its_table(rare, tmp_path, capsys):
    lab = bench(rare, tmp_path / "tiny")
    wanted = {CLASS_WORD, LOOK_IN_WORDS, ablations.PLAIN, ablations.NO_MAPS}
    cells = [c for c in ablations.cells(lab) if c.method in wanted]
    run(lab, [lambda _: cells], tmp_path, "tiny")
    (shown,) = json.loads((tmp_path / "report.json").read_text())["tables"]["ablations"]
    lines = {line[0]: dict(zip(shown["header"], line, strict=True)) for line in shown["lines"]}
    assert lines["base: class word"]["gap closed"] == "0%"
    assert lines["base: class word"]["scene error / base's"] == "1.00"
    assert lines[ablations.NO_MAPS]["picture error, against Infusion's"][0] in "+-"
    assert lines[ablations.PLAIN]["picture error, against Infusion's"] == ""
    assert ablations.NO_MAPS in capsys.readouterr().out


def test_toy_residual_leaves_the_other_class_alone_and_keeps_the_spread(monkeypatch):
    monkeypatch.setattr(toy, "SAMPLES", 400)
    spread = toy.worlds()[1]
    rows = {(r.method, r.measure): r.value for r in toy._measure(0, spread).rows}
    assert rows[toy.OWN, "w2_class_b"] < 1e-9
    assert rows[toy.FULL, "w2_class_b"] > 0.05
    assert rows[toy.OWN, "spread_kept"] > 0.8
    assert rows[toy.FULL, "spread_kept"] < 0.3


def test_half_written_cells_do_not_count(tmp_path, monkeypatch):
    store = Store(tmp_path)

    def fail(*_):
        raise InfusionError("the disk is full")

    one = Cell("steps", "lora", "ember", 1, fail)
    with pytest.raises(InfusionError):
        store.result(one)
    drawn = replace(one, compute=lambda: Result([], {}, {"a": Image.new("RGB", (8, 8))}))
    with monkeypatch.context() as patched:
        patched.setattr("infusion_lab.store.save_picture", fail)
        with pytest.raises(InfusionError):
            store.result(drawn)
    assert not store.has(drawn)
    again = replace(one, compute=lambda: Result([Row("steps", "lora", "ember", 1, "", 0, "fisher", 0.5)]))
    assert store.result(again).rows == store.result(one).rows  # the second time from the file


def test_the_page_has_a_place_for_every_study():
    template = (Path(page.__file__).parent / "templates" / "lab.html.j2").read_text()
    assert [study for study in STUDIES if f'"{study}" in tables' not in template] == []
