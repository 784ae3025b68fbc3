"""Drawing TinyWorld scenes exactly, with anti-aliased edges, in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .world import BACKGROUNDS, COLOURS, SIZE, Concept, Look, Scene, Thing

Pixels = NDArray[Any]  # float32, (H, W, 3) in [0, 1], or (H, W) for masks

OUTLINE_PX = 2.0
OUTLINE = np.float32(25 / 255)
OPEN_LOOK = np.float32(0.5)  # a thing whose look is left open is drawn in this grey
DOT_RADIUS = 0.36  # of the thing's radius
BAND = 0.4  # height of a stripe, of the thing's radius
RIM = 0.14  # width of the rim, of the thing's radius
PATTERN_SHADE = np.float32(0.78)

_YY, _XX = (np.mgrid[0:SIZE, 0:SIZE] + 0.5).astype(np.float32)


def distance(shape: str, x: Pixels, y: Pixels, radius: float) -> Pixels:
    """Signed distance in px to the edge of a shape centred at the origin, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88 * radius)
    if shape == "diamond":
        return (np.abs(x) + np.abs(y) - np.float32(1.2 * radius)) / np.float32(2**0.5)
    if shape == "triangle":  # upright, equilateral, a little larger so that its area compares
        half = np.float32(0.62 * radius)
        slope = np.abs(x) * np.float32(3**0.5 / 2) - y * np.float32(0.5)
        return np.maximum(slope, y) - half
    raise ValueError(f"unknown shape {shape!r}")


def silhouette(thing: Thing, grow: float = 0.0) -> Pixels:
    """Coverage (H, W) in [0, 1] of a thing, grown or shrunk by `grow` px."""
    x, y = grid(thing.centre)
    cover: Pixels = np.clip(0.5 - distance(thing.shape, x, y, thing.radius) + np.float32(grow), 0, 1)
    return cover


def background(scene: Scene) -> Pixels:
    """The scene's background alone, (H, W, 3) in [0, 1]."""
    base = rgb(BACKGROUNDS[scene.background])
    if scene.pattern == "plain":
        shaded = np.zeros((SIZE, SIZE), dtype=bool)
    elif scene.pattern == "lined":
        shaded = (_XX // 32) % 2 == 1
    else:
        shaded = ((_XX // 64) + (_YY // 64)) % 2 == 1
    return np.where(shaded[..., None], base * PATTERN_SHADE, base).astype(np.float32)


def body(look: Look | None, x: Pixels, y: Pixels, radius: float) -> Pixels:
    """Colours (H, W, 3) of a look around the origin, before outline and silhouette."""
    if look is None:
        return np.full((*x.shape, 3), OPEN_LOOK, dtype=np.float32)
    first = np.broadcast_to(rgb(COLOURS[look.first]), (*x.shape, 3))
    out: Pixels = first
    if look.second is not None:
        second = rgb(COLOURS[look.second])
        out = np.where(second_area(look.body, y, radius)[..., None], second, first)
    if look.dot is not None:
        cover = dot_cover(x, y, radius)[..., None]
        out = out * (1 - cover) + rgb(COLOURS[look.dot]) * cover
    return out.astype(np.float32)


def second_area(body: str, y: Pixels, radius: float) -> NDArray[np.bool_]:
    """Where a body shows its second colour."""
    if body == "plain":
        return np.zeros(y.shape, dtype=np.bool_)
    if body == "over":
        return y > 0
    bands: NDArray[np.bool_] = np.floor(y / (BAND * radius) + 0.5).astype(np.int64) % 2 == 1
    return bands


def dot_cover(x: Pixels, y: Pixels, radius: float) -> Pixels:
    """Coverage in [0, 1] of the dot."""
    cover: Pixels = np.clip(0.5 - (np.hypot(x, y) - np.float32(DOT_RADIUS * radius)), 0, 1)
    return cover


def grid(centre: tuple[float, float]) -> tuple[Pixels, Pixels]:
    """Pixel coordinates (H, W) of x and y around a centre."""
    return _XX - np.float32(centre[0]), _YY - np.float32(centre[1])


def paint(scene: Scene) -> Pixels:
    """The scene as pixels, (H, W, 3) in [0, 1]."""
    out = background(scene)
    for thing in scene.things:
        x, y = grid(thing.centre)
        colours = body(thing.look, x, y, thing.radius)
        if thing.look and thing.look.rim:
            core = silhouette(thing, -OUTLINE_PX - rim_width(thing))[..., None]
            colours = colours * core + rgb(COLOURS[thing.look.rim]) * (1 - core)
        inner = silhouette(thing, -OUTLINE_PX)[..., None]
        colours = colours * inner + OUTLINE * (1 - inner)
        cover = silhouette(thing)[..., None]
        out = out * (1 - cover) + colours * cover
    return out.astype(np.float32)


def rim_width(thing: Thing) -> float:
    """Width of the thing's rim, px; it lies inside the outline."""
    return RIM * thing.radius


def render(scene: Scene, concept: Concept | Sequence[Concept] | None = None) -> Image.Image:
    """Draw a scene, 128x128 RGB; things of a concept's shape wear that concept's look."""
    return Image.fromarray((paint(scene.wearing(concept)) * 255 + 0.5).astype(np.uint8))


def training_images(concept: Concept, count: int = 5) -> list[Image.Image]:
    """The concept's training pictures."""
    return [render(concept.training_scene(i)) for i in range(count)]


def rgb(colour: tuple[int, int, int]) -> NDArray[np.float32]:
    """A colour of 0 to 255 as (3,) in [0, 1]."""
    return np.asarray(colour, dtype=np.float32) / np.float32(255)
