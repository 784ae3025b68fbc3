"""The oracle: what is wrong with a picture, in numbers, because the scene it should show is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .fitting import REACH, as_pixels, fit, foreground_of, locate, shape_error, within
from .painting import OUTLINE_PX, Pixels, background, paint, rim_width, silhouette
from .world import SHAPES, SIZE, Concept, Scene, Thing

# Shape error from which on a thing has merged with something, or is another; exact ones are below .05.
OTHER_SHAPE = 0.15


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
        shape_error=shape_error(foreground_of(pixels, wanted, thing), found),
        rim_error=float(error[inside & ~core].mean()),
    )


def things_found(picture: Image.Image | Pixels, scene: Scene) -> int:
    """How many of a scene's things a picture shows where they should be, each by its own shape and clear of the others.

    A thing that has merged with another, is missing or has another's shape is not found.
    """
    pixels = as_pixels(picture)

    def shows(thing: Thing) -> bool:
        foreground, near = foreground_of(pixels, scene, thing), within(*thing.centre, REACH)
        fitted = {shape: fit(foreground, replace(thing, shape=shape), near) for shape in SHAPES}
        errors = {shape: shape_error(foreground, found) for shape, found in fitted.items()}
        return min(errors, key=errors.__getitem__) == thing.shape and errors[thing.shape] < OTHER_SHAPE

    return sum(shows(thing) for thing in scene.things)
