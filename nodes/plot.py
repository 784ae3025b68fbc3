"""Curves and points as a picture. ComfyUI ships Pillow and no plotting library.

A picture cannot know whether the canvas is dark or light, so it brings its own ground: a dark one, which does not glare
on the dark canvas and stands out on the light one. Lines are told from it by a contrast of 3 at least, letters by 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

from ..infusion_core.training.record import RunRecord
from .pictures import image_of

WIDTH, HEIGHT, BARS = 768, 384, 150
LEFT, TOP, RIGHT, BOTTOM = 78, 40, 20, 40
GREY, BLUE, ORANGE, VIOLET = "#7d8793", "#58a6ff", "#ff8f50", "#b48ae8"
INK, PAPER, RULE, EMPTY = "#e6edf3", "#1b1f24", "#363c44", "#2b3138"
FONT = ImageFont.load_default(17)  # read at half its size

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
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    every = [x for s in series for x, _ in s.points]
    first, last = int(min(every)), int(max(*every, min(every) + 1))

    def at(x: float, y: float) -> Point:
        across, up = (x - first) / (last - first), (min(y, top) - bottom) / (top - bottom)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - up)

    for part in range(5):
        value, tick = bottom + (top - bottom) * part / 4, first + (last - first) * part // 4
        y = at(first, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=RULE)
        draw.text((6, y - 11), f"{value:.3g}", INK, FONT)
        draw.text((at(tick, bottom)[0] - 8, HEIGHT - BOTTOM + 10), str(tick), INK, FONT)
    for one in series:
        _draw(draw, one, [at(x, y) for x, y in one.points])
    _legend(draw, series)
    return image_of(picture)


def loss_plot(record: RunRecord) -> torch.Tensor:
    """Losses of a run as IMAGE (1, H, W, 3): of every step, their running mean, and those of the snapshots on fixed
    noise; where the learning rate changes, how, from 0 at the bottom to the highest at the top."""
    window, means = record.means
    top, rates = record.highest, record.rates
    series = [
        Series("each step's loss", GREY, list(enumerate(record.losses, 1)), line=1),
        Series(f"mean of {window}", BLUE, list(enumerate(means, window)), line=2),
        Series("on fixed noise", ORANGE, record.validation, line=2, dot=3),
    ]
    if len({*rates}) > 1:
        highest = max(rates)
        shares = [(step, top * rate / highest) for step, rate in enumerate(rates, 1)]
        series.insert(0, Series(f"learning rate, up to {highest:g}", VIOLET, shares, line=1))
    return plot(series, 0.0, top)


def _draw(draw: ImageDraw.ImageDraw, series: Series, points: list[Point]) -> None:
    if series.line and len(points) > 1:
        draw.line(points, fill=series.colour, width=series.line)
    if series.dot:
        for x, y in points:
            draw.ellipse((x - series.dot, y - series.dot, x + series.dot, y + series.dot), fill=series.colour)


def _legend(draw: ImageDraw.ImageDraw, series: Sequence[Series]) -> None:
    x = float(LEFT)
    for one in (one for one in series if one.label):
        draw.rectangle((x, 13, x + 14, 23), fill=one.colour)
        draw.text((x + 20, 8), one.label, INK, FONT)
        x += 40 + draw.textlength(one.label, FONT)


def standing(gamma: Sequence[float]) -> Image.Image:
    """How overfitted a run is: a bar for each part of the noise levels, the least noise on the left."""
    picture = Image.new("RGB", (WIDTH, BARS), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((8, 2), f"overfitted, from least noise to most: {sum(gamma) / len(gamma):.0%}", INK, FONT)
    wide, room = (WIDTH - 16) / len(gamma), BARS - 30
    for number, value in enumerate(gamma):
        left = 8 + number * wide
        draw.rectangle((left, 24, left + wide - 4, BARS - 6), fill=EMPTY)
        draw.rectangle((left, 24 + room * (1 - value), left + wide - 4, BARS - 6), fill=shade(number, len(gamma)))
    return picture


def overfitting_plot(indicator: Sequence[tuple[int, Sequence[float]]]) -> torch.Tensor:
    """How overfitted a run was over its steps, a line for each part of the noise levels, as IMAGE (1, H, W, 3)."""
    if not indicator:
        return image_of(card("overfitting was not measured"))
    bins = len(indicator[0][1])
    labels = {0: "least noise", bins - 1: "most noise"}
    lines = [
        Series(labels.get(bin_, ""), shade(bin_, bins), [(step, gamma[bin_]) for step, gamma in indicator], line=2)
        for bin_ in range(bins)
    ]
    return plot(lines, 0.0, 1.0)


def card(text: str) -> Image.Image:
    """A picture that says something."""
    picture = Image.new("RGB", (WIDTH, BARS), PAPER)
    ImageDraw.Draw(picture).text((WIDTH / 2, BARS / 2), text, INK, FONT, anchor="mm")
    return picture


def shade(number: int, count: int) -> str:
    """A colour between blue and orange."""
    share = number / max(1, count - 1)
    mixed = [round(a + (b - a) * share) for a, b in zip(_rgb(BLUE), _rgb(ORANGE), strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as the widest; a single one as it is."""
    if len(pictures) == 1:
        return pictures[0]
    width = max(picture.width for picture in pictures)
    scaled = [p if p.width == width else p.resize((width, round(p.height * width / p.width))) for p in pictures]
    out = Image.new("RGB", (width, sum(p.height for p in scaled)), PAPER)
    top = 0
    for picture in scaled:
        out.paste(picture, (0, top))
        top += picture.height
    return out


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
