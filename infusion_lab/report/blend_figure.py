"""The figure of the study of DreamBlend: what guidance costs, what it frees, and whether attention collapses."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..measures import HEADLINE
from ..store import Row
from ..studies import blend
from .intervals import interval
from .tables import Figures, figures

GUIDED = ", guided by "
COLOURS = ("#e07b39", "#8b1a2b", "#1f6feb", "#2ea043")  # of runs


def blend_figure(rows: Sequence[Row]) -> Figure | None:
    """Picture error against the layout that is repeated, and collapse against steps; None without such rows."""
    found = figures(rows, blend.STUDY)
    runs = runs_of(found)
    if not runs:
        return None
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    trade, collapse = figure.subplots(1, 2)
    for run, colour in zip(runs, COLOURS, strict=False):
        _trade(trade, found, run, runs[run], colour)
        _collapse(collapse, found, run, runs[run], colour)
    trade.set(xlabel="share repeating the photos' layout, bare prompt", ylabel="picture error, unseen prompts")
    trade.set_title("line: snapshots alone; crosses: guided by gradient; squares: maps replaced", fontsize=9)
    collapse.set(xlabel="steps", ylabel="overlap of maps, more than the base's")
    collapse.set_title("attention collapse of snapshots", fontsize=9)
    for axes in (trade, collapse):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def runs_of(found: Figures) -> dict[str, dict[int, str]]:
    """Titles of snapshots alone by run and step."""
    runs: dict[str, dict[int, str]] = {}
    for title in dict.fromkeys(method for method, _ in found):
        run, _, step = title.rpartition(", ")
        if GUIDED not in title and step.endswith(" steps"):
            runs.setdefault(run, {})[int(step.removesuffix(" steps"))] = title
    return runs


def _trade(axes: Axes, found: Figures, run: str, alone: dict[int, str], colour: str) -> None:
    def at(title: str) -> tuple[float, float]:
        repeated, error = (fmean(found[title, measure].values()) for measure in ("layout_repeated", HEADLINE))
        return repeated, error

    drawn = {method for method, measure in found if measure == "layout_repeated"}
    points = [at(title) for title in alone.values() if title in drawn]
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, marker="o", label=run)
    for title in sorted(title for title in drawn if title.startswith(f"{alone[max(alone)]}{GUIDED}")):
        x, y = at(title)
        axes.plot([x], [y], color=colour, marker="s" if "maps replaced" in title else "x", linestyle="")


def _collapse(axes: Axes, found: Figures, run: str, alone: dict[int, str], colour: str) -> None:
    spans = {s: interval(of) for s, title in alone.items() if (of := found.get((title, "collapse"), {}))}
    if spans:
        means, halves = [span.mean for span in spans.values()], [span.half or 0.0 for span in spans.values()]
        axes.errorbar(list(spans), means, halves, color=colour, marker="o", capsize=3, label=run)
