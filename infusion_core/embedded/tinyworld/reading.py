"""The words for what a picture shows, read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .fitting import as_pixels, locate, read_background
from .painting import OUTLINE_PX, Pixels, dot_cover, grid, paint, rim_width, second_area, silhouette
from .world import COLOURS, POSITIONS, SIZES, Concept, Look, Scene, Thing


def read_look(image: Image.Image | Pixels, found: Thing) -> Look:
    """The look, of all that TinyWorld has, that a fitted thing is nearest to (least absolute colour error).

    What lies within the rim says all but the rim; the ring then is a rim's colour, or more of the same.
    """
    pixels = as_pixels(image)
    inside, core = silhouette(found, -OUTLINE_PX - 1) > 0.5, silhouette(found, -OUTLINE_PX - rim_width(found) - 1) > 0.5
    within = _read_body(pixels, found, core)
    ring = inside & ~(silhouette(found, -OUTLINE_PX - rim_width(found) + 1) > 0.5)
    if not ring.any():  # of a thing too small to have one
        return within
    rims = (None, *(colour for colour in COLOURS if colour not in (within.first, within.second)))

    def ring_error(rim: str | None) -> float:
        drawn = paint(Scene((replace(found, look=replace(within, rim=rim)),)))
        return float(np.abs(pixels - drawn)[ring].mean())

    return replace(within, rim=min(rims, key=ring_error))


def _read_body(pixels: Pixels, found: Thing, inside: NDArray[np.bool_]) -> Look:
    """The look without rim that these pixels of a fitted thing are nearest to."""
    x, y = (axis[inside] for axis in grid(found.centre))
    seen = pixels[inside]
    errors = {name: np.abs(seen - np.asarray(rgb) / 255).mean(axis=1) for name, rgb in COLOURS.items()}
    dotted = dot_cover(x, y, found.radius) > 0.5
    best, nearest = np.inf, Look("plain", "red")
    for look in all_looks():
        second = second_area(look.body, y, found.radius)
        dot = dotted if look.dot else np.zeros_like(dotted)
        total = errors[look.first][~second & ~dot].sum()
        total += errors[look.second or look.first][second & ~dot].sum()
        total += errors[look.dot or look.first][dot].sum()
        if total < best:
            best, nearest = float(total), look
    return nearest


@lru_cache(maxsize=1)
def all_looks() -> tuple[Look, ...]:
    """Every look TinyWorld has words for, so without rims."""
    looks: list[Look] = []
    for first in COLOURS:
        for second in (None, *COLOURS):
            for dot in (None, *COLOURS):
                if second == first or (dot is not None and dot in (first, second)):
                    continue
                bodies = ("plain",) if second is None else ("over", "striped")
                looks.extend(Look(body, first, second, dot) for body in bodies)
    return tuple(looks)


def read_concept(photos: Sequence[Image.Image], shape: str) -> Concept:
    """What TinyWorld training pictures show: the concept behind them, read by the oracle.

    Args:
        photos: 128x128.
        shape: what they show, a shape of TinyWorld.
    """
    looks, places = [], []
    for photo in photos:
        found, size, position = _find(photo, shape)
        looks.append(read_look(photo, found))
        places.append((*read_background(photo), position, size))
    look = max(looks, key=looks.count)
    background, pattern, position, size = max(places, key=places.count)
    return Concept("concept", shape, look, background, pattern, position, size)


def obeyed(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Which aspects of a one-thing scene a picture got right."""
    thing = scene.things[0]
    found, size, position = _find(picture, thing.shape)
    colour, pattern = read_background(picture)
    return {
        "position": position == thing.position,
        "size": size == thing.size,
        "background": colour == scene.background,
        "pattern": pattern == scene.pattern,
        "appearance": read_look(picture, found).sayable == thing.look.sayable if thing.look else True,
    }


def _find(picture: Image.Image, shape: str) -> tuple[Thing, str, str]:
    """The thing of a shape wherever it is, with the nearest size and position words."""
    anywhere = Thing(shape)
    found = locate(as_pixels(picture), Scene((anywhere,)), anywhere)
    x, y = found.centre
    position = min(POSITIONS, key=lambda p: math.hypot(x - POSITIONS[p][0], y - POSITIONS[p][1]))
    size = min(SIZES, key=lambda s: abs(SIZES[s] - found.radius))
    return found, size, position
