"""The oracle: what is wrong with a picture, in numbers, because the scene it should show is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

from .draw import OUTLINE_PX, Pixels, background, paint, silhouette
from .world import BACKGROUNDS, COLOURS, PATTERNS, POSITIONS, SIZE, SIZES, Concept, Look, Scene, Thing

RADII = np.arange(12.0, 37.0, 1.0)  # px, searched
REACH = 30.0  # px from the expected centre, searched
DISTINCT = 0.25  # colour distance (mean over RGB) at which a pixel certainly is not background


@dataclass(frozen=True)
class Score:
    """How a picture differs from the scene it should show.

    Attributes:
        concept_error: mean absolute colour error inside the thing where it was found, in [0, 1].
        scene_error: mean absolute colour error outside every thing, in [0, 1].
        position_error: distance of the thing's centre from the expected one, px.
        size_error: relative error of its radius.
        found: the thing as fitted.
    """

    concept_error: float
    scene_error: float
    position_error: float
    size_error: float
    found: Thing


def score(image: Image.Image | Pixels, scene: Scene, concept: Concept | None = None) -> Score:
    """Score a picture against a scene.

    Args:
        image: 128x128, a PIL image or floats (H, W, 3) in [0, 1].
        scene: what it should show. With a concept, the thing of the concept's shape is scored, else the first.
        concept: whose look that thing should wear; without one the thing's own look counts.

    Raises:
        ValueError: the picture has another size, or the scene has no thing of the concept's shape.
    """
    pixels = as_pixels(image)
    wanted = scene.wearing(concept)
    thing = wanted.thing(concept.shape) if concept else wanted.things[0]
    found = locate(pixels, wanted, thing)
    cx, cy = thing.centre
    fx, fy = found.centre
    others = tuple(t for t in wanted.things if t.shape != thing.shape)
    drawn = paint(replace(wanted, things=(*others, found)))
    error = np.abs(pixels - drawn).mean(axis=2)
    inside = silhouette(found, -OUTLINE_PX - 1) > 0.5
    outside = silhouette(found, 3) < 0.01
    for other in others:
        outside &= silhouette(locate(pixels, wanted, other), 3) < 0.01
    return Score(
        concept_error=float(error[inside].mean()),
        scene_error=float(np.abs(pixels - background(wanted)).mean(axis=2)[outside].mean()),
        position_error=float(np.hypot(fx - cx, fy - cy)),
        size_error=abs(found.radius / thing.radius - 1),
        found=found,
    )


def locate(pixels: Pixels, scene: Scene, thing: Thing) -> Thing:
    """Fit centre and radius of a thing, by its silhouette alone: its colours play no part.

    The silhouette that best separates what is background from what is not wins; ``2 * inside - area`` is that
    agreement up to a constant, found for all centres at once by convolution.
    """
    away = np.abs(pixels - _seen_background(pixels)).mean(axis=2)
    foreground = np.clip(away / DISTINCT, 0, 1)
    cx, cy = thing.centre
    best, found = -np.inf, thing
    for radius in RADII:
        kernel, area = _kernel(thing.shape, float(radius))
        agreement = 2 * fftconvolve(foreground, kernel, mode="same") - area
        agreement = np.where(_within(cx, cy), agreement, -np.inf)
        y, x = np.unravel_index(int(agreement.argmax()), agreement.shape)
        if agreement[y, x] > best:
            best = float(agreement[y, x])
            px, py = POSITIONS[thing.position]
            found = replace(thing, dx=x - px, dy=y - py, dr=float(radius) - SIZES[thing.size])
    return found


def read_background(image: Image.Image | Pixels) -> tuple[str, str]:
    """The background colour and pattern a picture shows, by the nearest of all of them."""
    pixels = as_pixels(image)
    errors = {key: np.abs(pixels - ground).mean(axis=2) for key, ground in _backgrounds().items()}
    # Things cover less than half of the picture, so the median error is the background's.
    return min(errors, key=lambda key: float(np.mean(np.sort(errors[key], axis=None)[: SIZE * SIZE * 3 // 5])))


def read_look(image: Image.Image | Pixels, found: Thing, looks: Sequence[Look]) -> Look:
    """The look among `looks` that a fitted thing is nearest to."""
    pixels = as_pixels(image)
    inside = silhouette(found, -OUTLINE_PX - 1) > 0.5

    def error(look: Look) -> float:
        drawn = paint(Scene((replace(found, look=look),)))
        return float(np.abs(pixels - drawn)[inside].mean())

    return min(looks, key=error)


def all_looks() -> tuple[Look, ...]:
    """Every look TinyWorld has."""
    looks = []
    for first in COLOURS:
        for second in (None, *COLOURS):
            for dot in (None, *COLOURS):
                if second == first or (dot is not None and dot in (first, second)):
                    continue
                bodies = ("plain",) if second is None else ("over", "striped")
                looks.extend(Look(body, first, second, dot) for body in bodies)
    return tuple(looks)


def as_pixels(image: Image.Image | Pixels) -> Pixels:
    """A picture as float32 (H, W, 3) in [0, 1].

    Raises:
        ValueError: it is not 128x128.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255 if isinstance(image, Image.Image) else image
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"TinyWorld pictures are {SIZE}x{SIZE} RGB, got shape {pixels.shape}")
    return pixels.astype(np.float32)


@lru_cache(maxsize=1)
def _backgrounds() -> dict[tuple[str, str], Pixels]:
    return {(b, p): background(Scene.of("circle", background=b, pattern=p)) for b in BACKGROUNDS for p in PATTERNS}


def _seen_background(pixels: Pixels) -> Pixels:
    """The background the picture shows, so that a wrong background does not spoil position and size."""
    return _backgrounds()[read_background(pixels)]


@lru_cache(maxsize=256)
def _kernel(shape: str, radius: float) -> tuple[Pixels, float]:
    """A flipped silhouette centred in an odd window, for convolution, and its area in px."""
    thing = Thing(shape, "big", "center", None, 0.0, 0.0, radius - SIZES["big"])
    mask = silhouette(replace(thing, dx=0.5, dy=0.5))  # pixel centres are at .5: symmetric around (64, 64)
    window = mask[64 - 48 : 64 + 49, 64 - 48 : 64 + 49]
    return window[::-1, ::-1].copy(), float(window.sum())


@lru_cache(maxsize=64)
def _within(cx: float, cy: float) -> Pixels:
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    near: Pixels = np.hypot(xx + 0.5 - cx, yy + 0.5 - cy) <= REACH
    return near
