"""Figures of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from infusion_core.metrics.interval import Interval

from ..methods.baseline import family_of
from ..store import Row
from ..studies import curves, fidelity
from .intervals import interval, plain, within_concepts
from .tables import Figures, figures, with_trade

PANELS = {
    "fisher": "Latent Fisher divergence, other concepts",
    "w2_class": "W2² from the base, class word",
    "concept_error": "concept error",
    "prompt_error": "prompt error",
    "diversity": "diversity of a bare prompt",
    "layout_repeated": "share repeating the photos' layout",
}
COLOURS = {  # of families; the published recipe has thin dots, the one tuned for likeness dashes
    "dreambooth": "#c4302b",
    "dreambooth-plain": "#8b1a2b",
    "lora": "#e07b39",
    "textual-inversion": "#7d8590",
    "custom-diffusion": "#8957e5",
    "perfusion": "#2ea043",
    "dco": "#d4a72c",
    "infusion": "#1f6feb",
    "infusion-small": "#0b3d91",
    "infusion-plain": "#58c4f6",
}
DIVERGENCES = ("fisher", "w2_class")  # whose spread grows with their size


def curves_figure(rows: Sequence[Row], names: Mapping[str, str]) -> Figure | None:
    """Each measure against training steps with 95% intervals, a line per method; None without such rows.

    Panels reach a third above the highest mean; intervals that are wider are cut off there.
    """
    of_study = [r for r in rows if r.study == curves.STUDY]
    if not of_study:
        return None
    at = {step: with_trade(figures(of_study, curves.STUDY, step)) for step in sorted({r.step for r in of_study})}
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        spans = {step: _spans(found, measure) for step, found in at.items()}
        for place, method in enumerate(dict.fromkeys(method for span in spans.values() for method in span)):
            points = {step * 1.02**place: span[method] for step, span in spans.items() if method in span}
            line(axes, points, names.get(method, method), method)
        axes.set(title=title, xlabel="steps", xscale="log", ylim=(0, _reach(spans)))
        axes.set_xticks(list(at), [str(step) for step in at])
        axes.minorticks_off()
        axes.title.set_fontsize(10)
        if measure == "fisher":
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(bottom=-0.003)  # so that 0 is seen
    handles, labels = figure.axes[1].get_legend_handles_labels()  # the panel that has the yardstick too
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _reach(spans: Mapping[int, Mapping[str, Interval]]) -> float:
    """Upper limit of a panel."""
    return 4 / 3 * max((one.mean for span in spans.values() for one in span.values()), default=0.0) or 1.0


def _spans(found: Figures, measure: str) -> dict[str, Interval]:
    """Mean and interval of a measure by method."""
    of_measure = {method: by for (method, m), by in found.items() if m == measure}
    return plain(of_measure) if measure in DIVERGENCES else within_concepts(of_measure)


def _colour(method: str) -> str:
    return COLOURS.get(family_of(method), "black")


def _mark(method: str) -> tuple[str, str]:
    """Marker and line of a method, by its variant."""
    variant = method.removeprefix(family_of(method))
    return {"-published": ("x", ":"), "-likeness": ("^", "--")}.get(variant, ("o", "-"))


def line(axes: Axes, points: Mapping[float, Interval], label: str, method: str) -> None:
    """Means against steps, with their intervals."""
    spans, colour = points.values(), _colour(method)
    reach = [[s.mean - s.low for s in spans], [s.high - s.mean for s in spans]]
    axes.errorbar(
        list(points),
        [s.mean for s in spans],
        reach,
        fmt="".join(_mark(method)),
        color=colour,
        ecolor=to_rgba(colour, 0.4),
        elinewidth=0.8,
        label=label,
        markersize=3,
        linewidth=2.4 if method == "infusion" else 1.3,
    )


def trade_figure(rows: Sequence[Row], names: Mapping[str, str]) -> Figure | None:
    """Gap closed against what is lost, with 95% intervals, a point per method; None without such rows."""
    found = {
        (method, measure): interval(by) for (method, measure), by in with_trade(figures(rows, fidelity.STUDY)).items()
    }
    methods = [method for method, measure in found if measure == "gap_closed" and family_of(method) in COLOURS]
    if not methods:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = {
        "prompt_error": "prompt error",
        "layout_repeated": "share repeating the photos' layout",
        "fisher": "Fisher divergence, other concepts",
    }
    for axes, (measure, heading) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for method in methods:
            x, y = found[method, measure], found[method, "gap_closed"]
            reach = [[[s.mean - s.low], [s.high - s.mean]] for s in (x, y)]
            label, colour, (marker, _) = names.get(method, method), _colour(method), _mark(method)
            axes.errorbar(x.mean, y.mean, reach[1], reach[0], marker, color=colour, label=label, elinewidth=1)
        axes.set(xlabel=heading, ylabel="gap closed")
        if measure == "fisher":
            axes.set_xscale("symlog", linthresh=0.01)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def gallery(pictures: Mapping[str, Sequence[Image.Image]]) -> Figure | None:
    """A column of pictures per method, each row of the same prompt and noise; None without pictures."""
    if not pictures:
        return None
    rows = max(len(column) for column in pictures.values())
    figure = Figure(figsize=(1.15 * len(pictures), 1.15 * rows + 0.4), layout="constrained")
    for axes, (name, column) in zip(
        figure.subplots(rows, len(pictures), squeeze=False).T, pictures.items(), strict=True
    ):
        axes[0].set_title(fill(name, 14), fontsize=7)
        for each in axes:
            each.axis("off")
        for each, picture in zip(axes, column, strict=False):
            each.imshow(picture)
    return figure
