"""The oracle: what is wrong with a picture, in numbers, because the scene it should show is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize

from .painting import OUTLINE_PX, Pixels, background, dot_cover, grid, paint, rim_width, second_area, silhouette
from .world import BACKGROUNDS, COLOURS, PATTERNS, POSITIONS, SHAPES, SIZE, SIZES, Concept, Look, Scene, Thing

RADII = tuple(np.arange(12.0, 37.0, 2.0).tolist())  # px, searched
_PADDED = 192  # room for a silhouette beyond the edge, px
REACH = 30.0  # px from the expected centre, searched in scenes of several things
SHAPE_REACH = 1.6  # of a thing's radius: how far round it its shape is judged; every shape fits in
OTHER_SHAPE = (
    0.15  # shape error from which on a thing has merged with something, or is another; exact ones are below .02
)
DISTINCT = 0.25  # colour distance (mean over RGB) at which a pixel certainly is not background


@dataclass(frozen=True)
class Score:
    """How a picture differs from the scene it should show.

    Attributes:
        concept_error: mean absolute colour error inside the thing where it was found, in [0, 1].
        scene_error: mean absolute colour error outside every thing, in [0, 1].
        position_error: distance of the thing's centre from the expected one, px.
        size_error: relative error of its radius.
        shape_error: share of what is there and what should be there that is not both, where it was found, in [0, 1].
        rim_error: as the concept error, of the ring along the edge alone, where the rim is: what no caption can tell.
    """

    concept_error: float
    scene_error: float
    position_error: float
    size_error: float
    shape_error: float
    rim_error: float

    @property
    def prompt_error(self) -> float:
        """How badly the prompt is obeyed: scene error, shape error and position error as a share of the edge."""
        return self.scene_error + self.shape_error + self.position_error / SIZE

    @property
    def picture_error(self) -> float:
        """The headline: is it the thing, and is the prompt obeyed? Concept error and prompt error together.

        A copy of a training photo has next to none of the first and all of the second.
        """
        return self.concept_error + self.prompt_error


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
    core = silhouette(found, -OUTLINE_PX - rim_width(found)) > 0.5
    outside = silhouette(found, 3) < 0.01
    for other in others:
        outside &= silhouette(locate(pixels, wanted, other), 3) < 0.01
    return Score(
        concept_error=float(error[inside].mean()),
        scene_error=float(np.abs(pixels - background(wanted)).mean(axis=2)[outside].mean()),
        position_error=float(np.hypot(fx - cx, fy - cy)),
        size_error=abs(found.radius / thing.radius - 1),
        shape_error=_shape_error(_foreground(pixels, wanted, thing), found),
        rim_error=float(error[inside & ~core].mean()),
    )


def locate(pixels: Pixels, scene: Scene, thing: Thing) -> Thing:
    """Fit centre and radius of a thing, by its silhouette alone: its colours play no part.

    The silhouette that best separates what is background from what is not wins; ``2 * inside - area`` is that
    agreement up to a constant. Convolution finds it for all whole-pixel centres at once, within `REACH` of the
    expected one when other things are about; a simplex search refines it.
    """
    near = _within(*thing.centre, REACH if len(scene.things) > 1 else SIZE)
    return _fit(_foreground(pixels, scene, thing), thing, near)


def _fit(foreground: Pixels, thing: Thing, near: Pixels) -> Thing:
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


def _foreground(pixels: Pixels, scene: Scene, thing: Thing) -> Pixels:
    """How surely each pixel is not background, in [0, 1]; 0 where another thing of the scene is expected, (H, W)."""
    away = np.abs(pixels - _seen_background(pixels)).mean(axis=2)
    foreground: Pixels = np.clip(away / DISTINCT, 0, 1) * _own_area(scene, thing)
    return foreground


def _shape_error(foreground: Pixels, found: Thing) -> float:
    """One minus the overlap (intersection over union) of foreground and silhouette, within reach of the thing."""
    near = np.hypot(*grid(found.centre)) <= SHAPE_REACH * found.radius
    seen, silhouetted = foreground[near], silhouette(found)[near]
    return 1 - float(np.minimum(seen, silhouetted).sum() / np.maximum(seen, silhouetted).sum())


def read_background(image: Image.Image | Pixels) -> tuple[str, str]:
    """The background colour and pattern a picture shows, by the nearest of all of them."""
    pixels = as_pixels(image)
    errors = {key: np.abs(pixels - ground).mean(axis=2) for key, ground in _backgrounds().items()}
    # Things cover less than two fifths of the picture: the smallest three fifths of the errors are the background's.
    return min(errors, key=lambda key: float(np.mean(np.sort(errors[key], axis=None)[: SIZE * SIZE * 3 // 5])))


def read_look(image: Image.Image | Pixels, found: Thing) -> Look:
    """The look, of all that TinyWorld has, that a fitted thing is nearest to (least absolute colour error).

    What lies within the rim says all but the rim; the ring then is a rim's colour, or more of the same.
    """
    pixels = as_pixels(image)
    inside, core = silhouette(found, -OUTLINE_PX - 1) > 0.5, silhouette(found, -OUTLINE_PX - rim_width(found) - 1) > 0.5
    within = _read_body(pixels, found, core)
    ring = inside & ~(silhouette(found, -OUTLINE_PX - rim_width(found) + 1) > 0.5)
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


def things_found(picture: Image.Image | Pixels, scene: Scene) -> int:
    """How many of a scene's things a picture shows where they should be, each by its own shape and clear of the others.

    A thing that has merged with another, is missing or has another's shape is not found.
    """
    pixels = as_pixels(picture)

    def shows(thing: Thing) -> bool:
        foreground, near = _foreground(pixels, scene, thing), _within(*thing.centre, REACH)
        fitted = {shape: _fit(foreground, replace(thing, shape=shape), near) for shape in SHAPES}
        errors = {shape: _shape_error(foreground, found) for shape, found in fitted.items()}
        return min(errors, key=errors.__getitem__) == thing.shape and errors[thing.shape] < OTHER_SHAPE

    return sum(shows(thing) for thing in scene.things)


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


@lru_cache(maxsize=64)
def _within(cx: float, cy: float, reach: float) -> Pixels:
    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    near: Pixels = np.hypot(xx + 0.5 - cx, yy + 0.5 - cy) <= reach
    return near


def _find(picture: Image.Image, shape: str) -> tuple[Thing, str, str]:
    """The thing of a shape wherever it is, with the nearest size and position words."""
    anywhere = Thing(shape)
    found = locate(as_pixels(picture), Scene((anywhere,)), anywhere)
    x, y = found.centre
    position = min(POSITIONS, key=lambda p: math.hypot(x - POSITIONS[p][0], y - POSITIONS[p][1]))
    size = min(SIZES, key=lambda s: abs(SIZES[s] - found.radius))
    return found, size, position
