"""The report of real weights: one self-contained page, the rows as tidy CSV, report.json and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.figure import Figure

from infusion_cli.console import say, say_table
from infusion_cli.output import write_report
from infusion_cli.pages import figure_png, inline_figure, inline_picture, render_page
from infusion_core.atomic import write_atomic

from ..report.page import TEMPLATES, Strip, cost_rows, recipes
from ..report.tables import Table
from ..store import Cell, Result, tidy_csv
from . import drift, several, table1
from .figures import NAMES, Points, drift_figure, points
from .setup import RealLab

MOST_SHOWN = 10  # concepts of a study whose pictures are on the page; a page of a hundred would not load


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()
    strips: Sequence[Strip] = ()


def write(lab: RealLab, results: Sequence[tuple[Cell, Result]]) -> None:
    """Write everything to the request's folder; print means and where it is."""
    bench, out = lab.bench, lab.request.out
    rows, spent = [row for _, result in results for row in result.rows], cost_rows(results)
    names = {m.key: m.title for m in bench.methods}
    model, studies = bench.studio.base.name, {row.study for row in rows}
    report: dict[str, Any] = {"model": model, "dataset": lab.data.title, "recipes": recipes(bench), "seed": bench.seed}
    sections, briefs = [], []
    if table1.STUDY in studies:
        shown, beside = table1.tables([*rows, *spent], names)
        sections.append(Section("Table 1", [shown], strips=strips_of(results, table1.STUDY, names)))
        report["table"] = _told(shown)
        briefs.append(beside)
    if drift.STUDY in studies:
        found = {measure: points(rows, measure) for measure in NAMES}
        drawn = {measure: drift_figure(found[measure], measure, names) for measure in NAMES}
        for measure, figure in drawn.items():
            write_atomic(out / f"{NAMES[measure]}.png", figure_png(figure))
        shown = drift.last_table(rows, names)
        sections.append(Section("Figures 10 and 11", [shown], list(drawn.values())))
        report["drift"] = _told(shown) | {measure: _numbers(of) for measure, of in found.items()}
        briefs.append(shown)
    if several.STUDY in studies:
        of_pairs, beside = several.tables(rows, names)
        sections.append(Section("Several subjects", of_pairs, strips=strips_of(results, several.STUDY, names)))
        report["several"] = [_told(shown) for shown in of_pairs]
        briefs.append(beside)
    write_atomic(out / "results.csv", tidy_csv(rows).encode())
    write_atomic(out / "costs.csv", tidy_csv(spent).encode())
    write_report(out / "report.json", report)
    page = render_page("lab-real.html.j2", TEMPLATES, model=model, dataset=lab.data.title, sections=sections,
                       recipes=recipes(bench), inline=inline_picture, inline_figure=inline_figure)  # fmt: skip
    write_atomic(out / "index.html", page.encode())
    for brief in briefs:
        say_table(brief.title, brief.header, brief.lines)
    say(f"Open {(out / 'index.html').resolve()}")


def strips_of(results: Sequence[tuple[Cell, Result]], study: str, names: Mapping[str, str]) -> list[Strip]:
    """Pictures of a study's first concepts, a row per concept and method."""
    of_study = [(c, r) for c, r in results if c.study == study and r.pictures]
    shown = list(dict.fromkeys(c.concept for c, _ in of_study))[:MOST_SHOWN]
    return [
        Strip(f"{c.concept}: {names.get(c.method, c.method)}", list(r.pictures.items()))
        for c, r in of_study
        if c.concept in shown
    ]


def _told(shown: Table) -> dict[str, Any]:
    return {"header": shown.header, "lines": shown.lines}


def _numbers(of: Points) -> dict[str, Any]:
    return {method: {str(step): asdict(span) for step, span in by.items()} for method, by in of.items()}
