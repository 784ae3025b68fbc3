"""Curves of training runs, as pictures."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from infusion_core.training.record import RunRecord

from .pages import figure_png


def overfitting_curve(record: RunRecord) -> bytes:
    """How overfitted the run is, over its steps, a line for each part of the noise levels, as PNG."""
    steps = [step for step, _ in record.indicator]
    bins = len(record.indicator[0][1])
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"]
    for number in range(bins):
        label = {0: "least noise", bins - 1: "most noise"}.get(number)
        shade = colours(number / max(1, bins - 1))
        axes.plot(steps, [gamma[number] for _, gamma in record.indicator], color=shade, label=label)
    axes.set(xlabel="step", ylabel="overfitted", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure_png(figure)
