"""The figures of real weights: divergences against training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from infusion_core.metrics.interval import Interval

from ..report.figures import line
from ..report.intervals import plain
from ..report.tables import figures
from ..store import Row
from .drift import COLUMNS, FISHER, STUDY, W2

NAMES = {FISHER: "figure10", W2: "figure11"}
Points = Mapping[str, Mapping[int, Interval]]  # by method and step


def points(rows: Sequence[Row], measure: str) -> Points:
    """Means over concepts with their intervals."""
    found: dict[str, dict[int, Interval]] = {}
    for step in sorted({r.step for r in rows if r.study == STUDY}):
        at = figures(rows, STUDY, step)
        for method, span in plain({m: by for (m, what), by in at.items() if what == measure}).items():
            found.setdefault(method, {})[step] = span
    return found


def drift_figure(of_measure: Points, measure: str, names: Mapping[str, str]) -> Figure:
    """A measure against training steps, a line per method with 95% intervals over concepts."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    steps = sorted({step for by in of_measure.values() for step in by})
    for place, (method, by) in enumerate(of_measure.items()):
        apart = {step * 1.02**place: span for step, span in by.items()}
        line(axes, apart, names.get(method, method), method)
    axes.set(title=COLUMNS[measure][0], xlabel="training steps", xscale="log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    if measure == FISHER:
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=-0.003)  # so that 0 is seen
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
