"""The vocabulary of TinyWorld: what a scene, a thing, a look and a concept are.

TinyWorld is a world of 128x128 px pictures that code can draw exactly. Every fact about a picture
is known, so a generated picture can be scored without opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Colour = tuple[int, int, int]

SIZE = 128  # picture edge, px

COLOURS: dict[str, Colour] = {
    "red": (215, 40, 40),
    "yellow": (250, 215, 40),
    "green": (35, 150, 60),
    "blue": (35, 75, 215),
    "purple": (145, 45, 185),
    "white": (250, 250, 250),
}
BACKGROUNDS: dict[str, Colour] = {
    "gray": (140, 140, 140),
    "pink": (245, 165, 195),
    "brown": (125, 85, 50),
    "teal": (105, 195, 195),
}
PATTERNS = ("plain", "checked", "lined")
SHAPES = ("circle", "square", "triangle", "diamond")
SIZES: dict[str, float] = {"small": 20.0, "big": 28.0}  # radius, px
POSITIONS: dict[str, tuple[float, float]] = {  # centre (x, y), px
    "center": (64.0, 64.0),
    "left": (32.0, 64.0),
    "right": (96.0, 64.0),
    "top": (64.0, 32.0),
    "bottom": (64.0, 96.0),
}
BODIES = ("plain", "over", "striped")


def _require(value: str | None, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; TinyWorld knows: {', '.join(known)}")


@dataclass(frozen=True)
class Look:
    """The appearance of a thing.

    `body` says how the two colours are laid out: ``plain`` (one colour), ``over`` (`first` above
    `second`) or ``striped`` (`first` with bands of `second`). `dot` is the colour of a dot in the
    middle, or None. `rim` is the colour of a ring along the edge, or None; no caption ever tells it: it stands
    for what every subject has and no word says.

    Raises:
        ValueError: a colour or body is not in TinyWorld, or the parts contradict each other.
    """

    body: str
    first: str
    second: str | None = None
    dot: str | None = None
    rim: str | None = None

    def __post_init__(self) -> None:
        _require(self.body, BODIES, "body")
        colours = tuple(COLOURS)
        _require(self.first, colours, "colour")
        if (self.second is None) != (self.body == "plain"):
            raise ValueError(f"a {self.body} body takes {'one colour' if self.body == 'plain' else 'two colours'}")
        if self.second is not None:
            _require(self.second, colours, "colour")
            if self.second == self.first:
                raise ValueError("the two colours of a body must differ")
        if self.dot is not None:
            _require(self.dot, colours, "colour")
            if self.dot in (self.first, self.second):
                raise ValueError("the dot must differ from the colours of the body")
        if self.rim is not None:
            _require(self.rim, colours, "colour")
            if self.rim in (self.first, self.second):
                raise ValueError("the rim must differ from the colours of the body")

    @property
    def sayable(self) -> Look:
        """What words can say of it: the look without its rim."""
        return replace(self, rim=None)

    @property
    def words(self) -> str:
        """The look in the words a caption uses, e.g. ``yellow dotted red over blue``."""
        body = self.first if self.body == "plain" else f"{self.first} {self.body} {self.second}"
        return f"{self.dot} dotted {body}" if self.dot else body


@dataclass(frozen=True)
class Thing:
    """One object: shape, size word, position word, look (None: left open) and offsets in px."""

    shape: str
    size: str = "big"
    position: str = "center"
    look: Look | None = None
    dx: float = 0.0
    dy: float = 0.0
    dr: float = 0.0

    def __post_init__(self) -> None:
        _require(self.shape, SHAPES, "shape")
        _require(self.size, tuple(SIZES), "size")
        _require(self.position, tuple(POSITIONS), "position")

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) in px."""
        x, y = POSITIONS[self.position]
        return x + self.dx, y + self.dy

    @property
    def radius(self) -> float:
        """Radius in px."""
        return SIZES[self.size] + self.dr


@dataclass(frozen=True)
class Scene:
    """Things on a background. Things are drawn in order; no two share a shape or a position."""

    things: tuple[Thing, ...]
    background: str = "gray"
    pattern: str = "plain"

    def __post_init__(self) -> None:
        _require(self.background, tuple(BACKGROUNDS), "background")
        _require(self.pattern, PATTERNS, "pattern")
        if not self.things:
            raise ValueError("a scene needs at least one thing")
        for field in ("shape", "position"):
            values = [getattr(thing, field) for thing in self.things]
            if len(set(values)) != len(values):
                raise ValueError(f"two things of a scene share a {field}: {', '.join(values)}")

    @classmethod
    def of(
        cls,
        shape: str,
        size: str = "big",
        position: str = "center",
        background: str = "gray",
        pattern: str = "plain",
        look: Look | None = None,
    ) -> Scene:
        """A scene with one thing."""
        return cls((Thing(shape, size, position, look),), background, pattern)

    def thing(self, shape: str) -> Thing:
        """The thing of that shape.

        Raises:
            ValueError: the scene has none.
        """
        for thing in self.things:
            if thing.shape == shape:
                return thing
        raise ValueError(f"the scene has no {shape}; it has: {', '.join(t.shape for t in self.things)}")

    def wearing(self, concepts: Concept | Sequence[Concept] | None) -> Scene:
        """This scene with every thing of a concept's shape given that concept's look."""
        if concepts is None:
            return self
        looks = {c.shape: c.look for c in ((concepts,) if isinstance(concepts, Concept) else concepts)}
        things = tuple(replace(t, look=looks.get(t.shape, t.look)) for t in self.things)
        return replace(self, things=things)


@dataclass(frozen=True)
class Concept:
    """A subject to personalise: a shape (its class word) with a look of its own."""

    name: str
    shape: str
    look: Look
    background: str = "gray"
    pattern: str = "plain"
    position: str = "center"
    size: str = "big"

    def __post_init__(self) -> None:
        self.training_scene(0)  # checks every word

    def training_scene(self, index: int) -> Scene:
        """Training picture `index`: deliberately undiverse, one background and one position, a few px of jitter."""
        shifts = ((0, 0, 0), (2, -1, 1), (-2, 1, -1), (1, 2, 0), (-1, -2, 1))
        dx, dy, dr = shifts[index % len(shifts)]
        thing = Thing(self.shape, self.size, self.position, self.look, dx, dy, dr)
        return Scene((thing,), self.background, self.pattern)
