"""Sentences about TinyWorld scenes, and random scenes to say them about."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import combinations
from random import Random

from ...captions import CAPTION_TEMPLATES
from .painting import silhouette
from .world import BACKGROUNDS, BODIES, COLOURS, PATTERNS, POSITIONS, SHAPES, SIZES, Concept, Look, Scene, Thing

# The weights know the words by number, and training drew openings by place: no template may change or move.
OPENINGS = (*(template.removesuffix(" {}") for template in CAPTION_TEMPLATES), "a")
UNSEEN_ASPECTS = ("size", "position", "background", "pattern")  # what an unseen prompt says; never the look
SPREADS = {  # positions that scenes of two and three things take
    2: (("left", "right"), ("top", "bottom")),
    3: (("left", "right", "top"), ("left", "right", "bottom"), ("top", "bottom", "left"), ("top", "bottom", "right")),
}


def phrase(thing: Thing, say: Collection[str]) -> str:
    """The noun phrase of one thing; `say` holds what is told: ``size``, ``look``, ``position``."""
    parts = [thing.size if "size" in say else "", thing.look.words if thing.look and "look" in say else "", thing.shape]
    if "position" in say:
        parts.append(f"at the {thing.position}")
    return " ".join(p for p in parts if p)


def caption(
    scene: Scene,
    say: Collection[str] = ("size", "look", "position", "background", "pattern"),
    opening: str = "a photo of a",
) -> str:
    """A sentence about a scene, telling the aspects in `say` (a look left open is never told)."""
    text = f"{opening} " + " and a ".join(phrase(t, say) for t in scene.things)
    if "background" in say:
        pattern = f"{scene.pattern} " if "pattern" in say else ""
        text += f" on a {pattern}{scene.background} background"
    return text


def random_look(rng: Random, held_out: Collection[Look] = ()) -> Look:
    """A look drawn at random whose sayable part is not in `held_out`; five of six have a rim, of any free colour."""
    while True:
        body = rng.choices(BODIES, weights=(2, 5, 5))[0]
        colours = rng.sample(tuple(COLOURS), 3)
        second = None if body == "plain" else colours[1]
        look = Look(body, colours[0], second, colours[2] if rng.random() < 0.6 else None)
        if look not in held_out:
            free = [colour for colour in COLOURS if colour not in (look.first, look.second)]
            return replace(look, rim=rng.choice(free) if rng.random() < 5 / 6 else None)


def random_scene(rng: Random, held_out: Collection[Look] = (), counts: tuple[float, ...] = (0.6, 0.28, 0.12)) -> Scene:
    """A scene of one, two or three things (with weights `counts`), a few px of jitter each.

    Things come in any order, and there is background between them.
    """
    count = rng.choices((1, 2, 3), weights=counts)[0]
    places = (rng.choice(tuple(POSITIONS)),) if count == 1 else rng.choice(SPREADS[count])
    shapes = rng.sample(SHAPES, count)
    while True:
        things = [
            Thing(
                shape,
                "small" if count == 3 else rng.choice(tuple(SIZES)),
                place,
                random_look(rng, held_out),
                rng.uniform(-4, 4),
                rng.uniform(-4, 4),
                rng.uniform(-2, 2),
            )
            for shape, place in zip(shapes, rng.sample(places, count), strict=True)
        ]
        if all(_apart(*pair) for pair in combinations(things, 2)):
            return Scene(tuple(things), rng.choice(tuple(BACKGROUNDS)), rng.choice(PATTERNS))


def _apart(one: Thing, other: Thing) -> bool:
    """Whether some background shows between two things."""
    return not (silhouette(one, 1) * silhouette(other, 1)).any()


def random_aspects(rng: Random, tell_look: float = 0.6, tell: float = 0.85) -> set[str]:
    """What a caption tells: the look with probability `tell_look`, each other aspect with `tell`."""
    say = {aspect for aspect in ("size", "position", "background", "pattern") if rng.random() < tell}
    if rng.random() < tell_look:
        say.add("look")
    return say


def unseen_scenes(concept: Concept, count: int = 8) -> list[Scene]:
    """Scenes that share neither background nor position with the concept's training pictures."""
    rng = Random(f"unseen {concept.name}")
    backgrounds = [b for b in BACKGROUNDS if b != concept.background]
    positions = [p for p in POSITIONS if p != concept.position]
    every = [
        Scene.of(concept.shape, size, position, background, pattern)
        for size in SIZES
        for position in positions
        for background in backgrounds
        for pattern in PATTERNS
    ]
    return rng.sample(every, count)
