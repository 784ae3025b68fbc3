"""The loss curve as a picture. ComfyUI ships Pillow and no plotting library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 768, 384
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 20, 40
GREY, BLUE, ORANGE, INK = "#b9c2cc", "#1f6feb", "#d1491b", "#22272e"


def loss_plot(losses: Sequence[float], validation: Sequence[tuple[int, float]]) -> torch.Tensor:
    """Loss of every step, its running mean, and the validation loss of the snapshots, as IMAGE (1, H, W, 3)."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    steps = max(2, len(losses))
    top = float(np.percentile([*losses, *(v for _, v in validation)], 99)) * 1.1 or 1.0

    def at(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (steps - 1)
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(loss, top) / top)

    for part in range(5):
        value = top * part / 4
        y = at(1, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill="#e6eaee")
        draw.text((8, y - 6), f"{value:.4f}", fill=INK)
    for part in range(5):
        step = 1 + (steps - 1) * part // 4
        draw.text((at(step, 0)[0] - 8, HEIGHT - BOTTOM + 8), str(step), fill=INK)
    _line(draw, [at(i + 1, v) for i, v in enumerate(losses)], GREY, 1)
    window = max(1, min(25, len(losses)))
    means = np.convolve(losses, np.ones(window) / window, "valid")
    _line(draw, [at(i + window, float(v)) for i, v in enumerate(means)], BLUE, 2)
    _line(draw, [at(s, v) for s, v in validation], ORANGE, 2)
    for s, v in validation:
        x, y = at(s, v)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ORANGE)
    for x, label, colour in ((LEFT, "loss of each step", GREY), (LEFT + 150, f"mean of {window}", BLUE),
                             (LEFT + 260, "fixed validation noise", ORANGE)):  # fmt: skip
        draw.rectangle((x, 16, x + 14, 24), fill=colour)
        draw.text((x + 20, 14), label, fill=INK)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def _line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    if len(points) > 1:
        draw.line(list(points), fill=colour, width=width)
