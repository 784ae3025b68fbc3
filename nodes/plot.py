"""Curves and points as a picture. ComfyUI ships Pillow and no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

WIDTH, HEIGHT, BARS = 768, 384, 150
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 40
GREY, BLUE, ORANGE, INK = "#b9c2cc", "#1f6feb", "#d1491b", "#22272e"

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One thing that is drawn.

    Attributes:
        label: in the legend; empty for none.
        colour: as Pillow names it.
        points: x and y of each.
        line: width of the line that joins them, px; 0 for none.
        dot: radius of a dot at each, px; 0 for none.
    """

    label: str
    colour: str
    points: Sequence[Point]
    line: int = 0
    dot: int = 0


def plot(series: Sequence[Series], bottom: float, top: float) -> torch.Tensor:
    """Series over one pair of axes as IMAGE (1, H, W, 3).

    Args:
        series: with at least one point in all.
        bottom, top: of the y axis; higher points are drawn at the top.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    every = [x for s in series for x, _ in s.points]
    first, last = int(min(every)), int(max(*every, min(every) + 1))

    def at(x: float, y: float) -> Point:
        across, up = (x - first) / (last - first), (min(y, top) - bottom) / (top - bottom)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - up)

    for part in range(5):
        value, tick = bottom + (top - bottom) * part / 4, first + (last - first) * part // 4
        y = at(first, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill="#e6eaee")
        draw.text((8, y - 6), f"{value:.4g}", fill=INK)
        draw.text((at(tick, bottom)[0] - 8, HEIGHT - BOTTOM + 8), str(tick), fill=INK)
    for one in series:
        _draw(draw, one, [at(x, y) for x, y in one.points])
    _legend(draw, series)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def loss_plot(losses: Sequence[float], validation: Sequence[tuple[int, float]]) -> torch.Tensor:
    """Loss of every step, its running mean, and the validation loss of the snapshots, as IMAGE (1, H, W, 3)."""
    window = max(1, min(25, len(losses)))
    means = np.convolve(losses, np.ones(window) / window, "valid")
    top = float(np.percentile([*losses, *(v for _, v in validation)], 99)) * 1.1 or 1.0
    return plot(
        [
            Series("loss of each step", GREY, [(i + 1, v) for i, v in enumerate(losses)], line=1),
            Series(f"mean of {window}", BLUE, [(i + window, float(v)) for i, v in enumerate(means)], line=2),
            Series("fixed validation noise", ORANGE, validation, line=2, dot=3),
        ],
        0.0,
        top,
    )


def _draw(draw: ImageDraw.ImageDraw, series: Series, points: list[Point]) -> None:
    if series.line and len(points) > 1:
        draw.line(points, fill=series.colour, width=series.line)
    if series.dot:
        for x, y in points:
            draw.ellipse((x - series.dot, y - series.dot, x + series.dot, y + series.dot), fill=series.colour)


def _legend(draw: ImageDraw.ImageDraw, series: Sequence[Series]) -> None:
    x = float(LEFT)
    for one in (one for one in series if one.label):
        draw.rectangle((x, 16, x + 14, 24), fill=one.colour)
        draw.text((x + 20, 14), one.label, fill=INK)
        x += 40 + draw.textlength(one.label)


def standing(gamma: Sequence[float]) -> Image.Image:
    """How overfitted a run is: a bar for each part of the noise levels, the least noise on the left."""
    picture = Image.new("RGB", (WIDTH, BARS), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), f"overfitted, from least noise to most: {sum(gamma) / len(gamma):.0%}", fill=INK)
    wide, room = (WIDTH - 16) / len(gamma), BARS - 30
    for number, value in enumerate(gamma):
        left = 8 + number * wide
        draw.rectangle((left, 24, left + wide - 4, BARS - 6), fill="#eef1f4")
        draw.rectangle((left, 24 + room * (1 - value), left + wide - 4, BARS - 6), fill=shade(number, len(gamma)))
    return picture


def overfitting_plot(indicator: Sequence[tuple[int, Sequence[float]]]) -> torch.Tensor:
    """How overfitted a run was over its steps, a line for each part of the noise levels, as IMAGE (1, H, W, 3)."""
    if not indicator:
        return plot([Series("overfitting was not measured", GREY, [(0, 0)])], 0.0, 1.0)
    bins = len(indicator[0][1])
    labels = {0: "least noise", bins - 1: "most noise"}
    lines = [
        Series(labels.get(bin_, ""), shade(bin_, bins), [(step, gamma[bin_]) for step, gamma in indicator], line=2)
        for bin_ in range(bins)
    ]
    return plot(lines, 0.0, 1.0)


def shade(number: int, count: int) -> str:
    """A colour between blue and orange."""
    share = number / max(1, count - 1)
    mixed = [round(a + (b - a) * share) for a, b in zip(_rgb(BLUE), _rgb(ORANGE), strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as the first; a single one as it is."""
    if len(pictures) == 1:
        return pictures[0]
    width = pictures[0].width
    scaled = [p if p.width == width else p.resize((width, round(p.height * width / p.width))) for p in pictures]
    out = Image.new("RGB", (width, sum(p.height for p in scaled)))
    top = 0
    for picture in scaled:
        out.paste(picture, (0, top))
        top += picture.height
    return out


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
