"""Figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..tinyworld.evaluate import mean_interval
from . import curves, fidelity
from .store import Row, means
from .tables import figures, with_trade

PANELS = {
    "fisher": "Latent Fisher divergence, other concepts",
    "w2_class": "W2² from the base, class word",
    "concept_error": "concept error",
    "scene_error": "scene error",
    "diversity": "diversity of a bare prompt",
    "layout_repeated": "share repeating the photos' layout",
}
COLOURS = {
    "dreambooth": "#c4302b",
    "dreambooth-plain": "#8b1a2b",
    "lora": "#e07b39",
    "textual-inversion": "#7d8590",
    "custom-diffusion": "#8957e5",
    "perfusion": "#2ea043",
    "infusion": "#1f6feb",
}


def curves_figure(rows: Sequence[Row], names: Mapping[str, str]) -> Figure | None:
    """Each measure against training steps, a line per method; None without such rows."""
    of_study = [r for r in rows if r.study == curves.STUDY]
    if not of_study:
        return None
    points = means(of_study, lambda r: (r.measure, r.method, r.step, r.concept))
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for method in dict.fromkeys(r.method for r in of_study if r.measure == measure):
            by_step: dict[int, list[float]] = {}
            for (m, name, step, _), value in sorted(points.items()):
                if (m, name) == (measure, method):
                    by_step.setdefault(step, []).append(value)
            _line(axes, by_step, names.get(method, method), COLOURS.get(method, "black"), method == "infusion")
        axes.set(title=title, xlabel="steps")
        axes.title.set_fontsize(10)
        if measure == "fisher":
            axes.set_yscale("symlog", linthresh=0.01)
        else:
            axes.set_ylim(bottom=0)
    figure.axes[1].legend(frameon=False, fontsize=8)  # the panel that has the yardstick too
    return figure


def _line(axes: Axes, by_step: Mapping[int, Sequence[float]], label: str, colour: str, wide: bool) -> None:
    """Means over concepts against steps, with their 95% interval shaded where there are several concepts."""
    means_, low, high = zip(*(mean_interval(values) for values in by_step.values()), strict=True)
    axes.plot(list(by_step), means_, "o-", markersize=3, linewidth=2.4 if wide else 1.3, color=colour, label=label)
    axes.fill_between(list(by_step), low, high, color=colour, alpha=0.12, linewidth=0)


def trade_figure(rows: Sequence[Row], names: Mapping[str, str]) -> Figure | None:
    """Gap closed against what is lost, with 95% intervals, a point per method; None without such rows."""
    found = with_trade(figures(rows, fidelity.STUDY))
    methods = [m for m, measure in found if measure == "gap_closed" and m in COLOURS]
    if not methods:
        return None
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = {
        "prompt_error": "prompt error",
        "layout_repeated": "share repeating the photos' layout",
        "fisher": "Fisher divergence, other concepts",
    }
    for axes, (measure, heading) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for method in methods:
            spans = [mean_interval(list(found[method, m].values())) for m in (measure, "gap_closed")]
            x, y = spans
            reach = [[[mean - low], [high - mean]] for mean, low, high in spans]
            label = names.get(method, method)
            axes.errorbar(x[0], y[0], reach[1], reach[0], "o", color=COLOURS[method], label=label, elinewidth=1)
        axes.set(xlabel=heading, ylabel="gap closed")
        if measure == "fisher":
            axes.set_xscale("symlog", linthresh=0.01)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
