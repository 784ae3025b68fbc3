"""The lab's report: one self-contained page, the rows as tidy CSV, and report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from infusion_cli.console import say, say_table
from infusion_cli.output import peak_rss_mb, save_picture, write_report
from infusion_cli.pages import figure_png, inline_figure, inline_picture, render_page
from infusion_core.atomic import write_atomic
from infusion_core.embedded.tinyworld import training_images

from ..bench import Bench
from ..methods.apt import ladder
from ..methods.registry import SOURCES, tuning
from ..store import Cell, Result, Row, tidy_csv
from ..studies import ablations, apt, blend, curves, fidelity, restraints, several, stopping, toy
from ..studies.several import JOIN, TOGETHER
from . import lora_tables, tables
from .blend_figure import blend_figure
from .claims import verdicts
from .figures import curves_figure, gallery, trade_figure
from .stopping_table import stopping_table

TEMPLATES = __package__  # whose templates the lab's pages are made by


@dataclass(frozen=True)
class Strip:
    """A row of pictures under a name, each with a caption."""

    name: str
    pictures: list[tuple[str, Image.Image]]


def write(out: Path, bench: Bench, results: Sequence[tuple[Cell, Result]], seconds: float, mode: str) -> None:
    """Write index.html, results.csv, costs.csv, report.json and the figures to `out`; print means and where it is."""
    rows, costs = [row for _, result in results for row in result.rows], cost_rows(results)
    names = {m.key: m.title for m in [*ladder(), *bench.methods]} | {JOIN.join(TOGETHER): "APT and Infusion"}
    all_tables, judged, strips = _tables(rows, costs, names), verdicts(rows, names), _strips(results, names)
    drawn = _figures(rows, names, strips)
    report = {
        "mode": mode,
        "seed": bench.seed,
        "scale": asdict(bench.scale),
        "recipes": recipes(bench),
        "claims": [asdict(v) for v in judged],
        "tables": {name: [asdict(t) for t in of] for name, of in all_tables.items()},
        "seconds": seconds,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_atomic(out / "results.csv", tidy_csv(rows).encode())
    write_atomic(out / "costs.csv", tidy_csv(costs).encode())
    write_report(out / "report.json", report)
    for name, figure in drawn.items():
        write_atomic(out / f"{name}.png", figure_png(figure))
    _save_toys(out, results)
    first = [*bench.concepts, *bench.tuning_concepts][0]
    page = render_page(
        "lab.html.j2",
        TEMPLATES,
        report=report,
        verdicts=judged,
        tables=all_tables,
        figures={name: inline_figure(figure) for name, figure in drawn.items()},
        strips=strips,
        photos=[inline_picture(p) for p in training_images(first)],
        concept=first,
        recipes=recipes(bench),
        tuning=tuning()["methods"],
        inline=inline_picture,
    )
    write_atomic(out / "index.html", page.encode())
    for brief in [*tables.brief_tables(rows, names), *all_tables.get(stopping.STUDY, [])]:
        say_table(brief.title, brief.header, brief.lines)
    say(f"Open {(out / 'index.html').resolve()}")


def _figures(rows: Sequence[Row], names: Mapping[str, str], strips: Mapping[str, list[Strip]]) -> dict[str, Figure]:
    """Those that the rows and pictures have something for, by name."""
    together = {s.name: [picture for _, picture in s.pictures] for s in strips.get(several.STUDY, [])}
    found = {
        "curves": curves_figure(rows, names),
        "trade": trade_figure(rows, names),
        "several": gallery(together),
        "blend": blend_figure(rows),
    }
    return {name: figure for name, figure in found.items() if figure}


def _save_toys(out: Path, results: Sequence[tuple[Cell, Result]]) -> None:
    """The toy worlds' pictures as files of their own."""
    for cell, result in results:
        if cell.study == toy.STUDY:
            for picture in result.pictures.values():
                save_picture(out / f"toy-{cell.concept.replace(' ', '-')}.png", picture)


def cost_rows(results: Sequence[tuple[Cell, Result]]) -> list[Row]:
    """Costs as rows, apart from the rest because they differ from machine to machine."""
    return [
        replace(result.rows[0], prompt="", measure=measure, value=value)
        for _, result in results
        for measure, value in result.costs.items()
    ]


def _tables(rows: Sequence[Row], costs: Sequence[Row], names: Mapping[str, str]) -> dict[str, list[tables.Table]]:
    """Tables by study."""
    found = {
        fidelity.STUDY: [tables.fidelity_table(rows, costs, names)],
        curves.STUDY: [tables.steps_table(rows, names)],
        several.STUDY: tables.several_tables(rows, names),
        blend.STUDY: [lora_tables.blend_table(rows)],
        apt.STUDY: [lora_tables.apt_table(rows, names)],
        restraints.STUDY: [lora_tables.restraints_table(rows)],
        ablations.STUDY: [tables.ablation_table(rows)],
        stopping.STUDY: [stopping_table(rows, names)],
        toy.STUDY: tables.toy_tables(rows),
    }
    return {study: [t for t in of if t.lines] for study, of in found.items() if any(t.lines for t in of)}


def _strips(results: Sequence[tuple[Cell, Result]], names: Mapping[str, str]) -> dict[str, list[Strip]]:
    """Pictures by study: those of each study's first concept or group."""
    first: dict[str, str] = {}
    found: dict[str, dict[str, dict[str, Image.Image]]] = {}  # by study, name and caption
    for cell, result in results:
        wanted = first.setdefault(cell.study, cell.concept)
        if result.pictures and (cell.concept == wanted or cell.study == toy.STUDY):
            name = cell.concept if cell.study == toy.STUDY else names.get(cell.method, cell.method)
            found.setdefault(cell.study, {}).setdefault(name, {}).update(result.pictures)
    return {study: [Strip(n, list(p.items())) for n, p in named.items()] for study, named in found.items()}


def recipes(bench: Bench) -> list[dict[str, Any]]:
    """How each method was trained, and where its settings come from."""
    out = []
    for method in bench.methods:
        settings = method.run_settings(bench.steps(method))
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if key != "steps")
        out.append({"name": method.title, "steps": bench.steps(method), "source": SOURCES[method.family],
                    "settings": told})  # fmt: skip
    return out
