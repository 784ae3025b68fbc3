"""Where things are in a picture, and what background is behind them, whatever colours the things have."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_fill_holes
from scipy.optimize import minimize

from .painting import PATTERN_SHADE, Pixels, background, grid, rgb, silhouette
from .world import BACKGROUNDS, PATTERNS, POSITIONS, SIZE, SIZES, Scene, Thing

RADII = tuple(np.arange(12.0, 37.0, 2.0).tolist())  # px, searched
_PADDED = 192  # room for a silhouette beyond the edge, px
REACH = 30.0  # px from the expected centre, searched in scenes of several things
SHAPE_REACH = 1.6  # of a thing's radius: how far round it its shape is judged; every shape fits in
# Colour distance (largest over RGB) up to which a pixel is background, however drawn, and from which on it is not: the
# colours of things are 0.29 and more away from every shade of a background.
SAME, DISTINCT = 0.1, 0.3


def locate(pixels: Pixels, scene: Scene, thing: Thing) -> Thing:
    """Fit centre and radius of a thing, by its silhouette alone: its colours play no part.

    The silhouette that best separates what is background from what is not wins; ``2 * inside - area`` is that
    agreement up to a constant. Convolution finds it for all whole-pixel centres at once, within `REACH` of the
    expected one when other things are about; a simplex search refines it.
    """
    near = within(*thing.centre, REACH if len(scene.things) > 1 else SIZE)
    return fit(foreground_of(pixels, scene, thing), thing, near)


def fit(foreground: Pixels, thing: Thing, near: Pixels) -> Thing:
    """The thing with the centre, of those in `near` (H, W), and the radius that agree best with the foreground."""
    spectrum = np.fft.rfft2(foreground, (_PADDED, _PADDED))

    def agreement(radius: float) -> tuple[float, float, float, float]:
        kernel, area = _kernel(thing.shape, radius)
        inside = np.fft.irfft2(spectrum * kernel)[:SIZE, :SIZE]
        y, x = np.unravel_index(int(np.where(near, inside, -np.inf).argmax()), inside.shape)
        return 2 * float(inside[y, x]) - area, x + 0.5, y + 0.5, radius

    _, x, y, radius = max(agreement(r) for r in RADII)
    px, py = POSITIONS[thing.position]

    def placed(at: NDArray[np.float64]) -> Thing:
        at = np.clip(at, (0, 0, RADII[0]), (SIZE, SIZE, RADII[-1]))
        return replace(thing, dx=float(at[0]) - px, dy=float(at[1]) - py, dr=float(at[2]) - SIZES[thing.size])

    def disagreement(at: NDArray[np.float64]) -> float:
        mask = silhouette(placed(at))
        return float((mask * (1 - 2 * foreground)).sum())

    start = np.array([x, y, radius])
    simplex = start + np.vstack([np.zeros(3), np.eye(3)])
    best = minimize(disagreement, start, method="Nelder-Mead",
                    options={"initial_simplex": simplex, "maxfev": 45, "xatol": 0.05, "fatol": 0.5})  # fmt: skip
    return placed(best.x)


def foreground_of(pixels: Pixels, scene: Scene, thing: Thing) -> Pixels:
    """How surely each pixel is not background, in [0, 1]; 0 where another thing of the scene is expected, (H, W).

    What is enclosed by such pixels is of the thing, whatever its colour: some blends of colours look like a background.
    """
    away = np.min([np.abs(pixels - shade).max(axis=2) for shade in _seen_shades(pixels)], axis=0)
    differs = np.clip((away - SAME) / (DISTINCT - SAME), 0, 1)
    foreground: Pixels = np.maximum(differs, binary_fill_holes(differs > 0.5)) * _own_area(scene, thing)
    return foreground


def shape_error(foreground: Pixels, found: Thing) -> float:
    """One minus the overlap (intersection over union) of foreground and silhouette, within reach of the thing."""
    near = np.hypot(*grid(found.centre)) <= SHAPE_REACH * found.radius
    seen, silhouetted = foreground[near], silhouette(found)[near]
    return 1 - float(np.minimum(seen, silhouetted).sum() / np.maximum(seen, silhouetted).sum())


@lru_cache(maxsize=64)
def within(cx: float, cy: float, reach: float) -> Pixels:
    """1 where a pixel is no farther than `reach` px from a point, else 0, (H, W)."""
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    near: Pixels = np.hypot(xx + 0.5 - cx, yy + 0.5 - cy) <= reach
    return near


def read_background(image: Image.Image | Pixels) -> tuple[str, str]:
    """The background colour and pattern a picture shows, by the nearest of all of them."""
    pixels = as_pixels(image)
    errors = {key: np.abs(pixels - ground).mean(axis=2) for key, ground in _backgrounds().items()}
    # Things cover less than two fifths of the picture: the smallest three fifths of the errors are the background's.
    return min(errors, key=lambda key: float(np.mean(np.sort(errors[key], axis=None)[: SIZE * SIZE * 3 // 5])))


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


def _seen_shades(pixels: Pixels) -> tuple[Pixels, ...]:
    """The shades of the background that the picture shows, (3,) each: a wrong background or pattern hides no thing."""
    colour, _ = read_background(pixels)
    light = rgb(BACKGROUNDS[colour])
    return light, light * PATTERN_SHADE


@lru_cache(maxsize=256)
def _kernel(shape: str, radius: float) -> tuple[NDArray[np.complex128], float]:
    """The spectrum of a silhouette, for correlation around pixel centres, and its area in px."""
    mask = silhouette(Thing(shape, "big", "center", None, 0.5, 0.5, radius - SIZES["big"]))
    centred = np.roll(np.pad(mask, (0, _PADDED - SIZE)), (-SIZE // 2, -SIZE // 2), axis=(0, 1))
    return np.conj(np.fft.rfft2(centred)), float(mask.sum())


def _own_area(scene: Scene, thing: Thing) -> Pixels:
    """1 where a pixel is nearer to this thing's expected place than to another's, else 0, (H, W)."""
    own = np.hypot(*grid(thing.centre)) - thing.radius
    area = np.ones_like(own)
    for other in scene.things:
        if other.shape != thing.shape:
            area *= own <= np.hypot(*grid(other.centre)) - other.radius
    return area
