"""The report of real weights: one self-contained page, the rows as tidy CSV, and report.json."""

from __future__ import annotations

from collections.abc import Sequence

from infusion_cli.console import say, say_table
from infusion_cli.output import write_report
from infusion_cli.pages import inline_picture, render_page
from infusion_core.atomic import write_atomic

from ..report.page import TEMPLATES, Strip, cost_rows, recipes
from ..store import Cell, Result, tidy_csv
from . import table1
from .setup import RealLab


def write(lab: RealLab, results: Sequence[tuple[Cell, Result]]) -> None:
    """Write index.html, results.csv, costs.csv and report.json to the request's folder; print means and where it is."""
    bench, out = lab.bench, lab.request.out
    rows, spent = [row for _, result in results for row in result.rows], cost_rows(results)
    names = {m.key: m.title for m in bench.methods}
    shown, beside = table1.tables([*rows, *spent], names)
    strips = [Strip(f"{c.concept}: {names[c.method]}", list(r.pictures.items())) for c, r in results]
    write_atomic(out / "results.csv", tidy_csv(rows).encode())
    write_atomic(out / "costs.csv", tidy_csv(spent).encode())
    told = {"model": bench.studio.base.name, "recipes": recipes(bench), "seed": bench.seed}
    write_report(out / "report.json", told | {"table": {"header": shown.header, "lines": shown.lines}})
    page = render_page("lab-real.html.j2", TEMPLATES, model=bench.studio.base.name, dataset=lab.data.title,
                       table=shown, strips=strips, recipes=recipes(bench), inline=inline_picture)  # fmt: skip
    write_atomic(out / "index.html", page.encode())
    say_table(beside.title, beside.header, beside.lines)
    say(f"Open {(out / 'index.html').resolve()}")
