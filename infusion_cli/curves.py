"""Curves of training runs, as pictures: PNG for files, SVG in a page's own ink for pages."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from infusion_core.training.record import RunRecord

from .pages import figure_png

GREY, BLUE, ORANGE = "#828c97", "#3b82f6", "#e8590c"  # lines that are seen on white and on black
_INK = "#010203"  # stands for the page's ink, which is dark or light
_ON_A_PAGE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "legend.frameon": False,
}
_BINS = LinearSegmentedColormap.from_list("bins", [BLUE, ORANGE])
Drawing = Callable[[Axes, RunRecord], None]


def overfitting_curve(record: RunRecord) -> bytes:
    """How overfitted the run is, over its steps, a line for each part of the noise levels, as PNG."""
    return figure_png(_figure(overfitting, record))


def on_page(drawing: Drawing, record: RunRecord) -> Markup:
    """A curve as SVG to be put into a page, dark or light as that is."""
    with matplotlib.rc_context(_ON_A_PAGE):
        figure, text = _figure(drawing, record), StringIO()
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(_INK, "currentColor"))


def curves_of(record: RunRecord) -> list[tuple[str, Markup]]:
    """Title and curve of all that a run can show so far."""
    curves = [("Loss", losses)] if record.losses else []
    if record.indicator:
        curves.append(("Known by heart, by noise level", overfitting))
    if len({*record.rates}) > 1:
        curves.append(("Learning rate", rates))
    return [(title, on_page(curve, record)) for title, curve in curves]


def losses(axes: Axes, record: RunRecord) -> None:
    """Loss of each step, a running mean, and the validation loss of the snapshots."""
    window, means = record.means
    steps = range(1, len(record.losses) + 1)
    axes.plot(steps, record.losses, color=GREY, linewidth=0.6, label="each step")
    axes.plot(steps[window - 1 :], means, color=BLUE, linewidth=1.5, label=f"mean of {window}")
    measured = zip(*record.validation, strict=True) if record.validation else ([], [])
    axes.plot(*measured, "o-", color=ORANGE, label="fixed validation noise")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, record.highest))
    axes.legend(frameon=False)


def rates(axes: Axes, record: RunRecord) -> None:
    """Learning rate of each step."""
    axes.plot(range(1, len(record.rates) + 1), record.rates, color=BLUE)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.set_ylim(bottom=0)


def overfitting(axes: Axes, record: RunRecord) -> None:
    """How overfitted the run is, a line for each part of the noise levels."""
    steps = [step for step, _ in record.indicator]
    bins = len(record.indicator[0][1])
    for number in range(bins):
        label = {0: "least noise", bins - 1: "most noise"}.get(number)
        shade = _BINS(number / max(1, bins - 1))
        axes.plot(steps, [gamma[number] for _, gamma in record.indicator], color=shade, label=label)
    axes.set(xlabel="step", ylabel="overfitted", ylim=(0, 1))
    axes.legend()


def _figure(drawing: Drawing, record: RunRecord) -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    drawing(axes, record)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
