"""What `infusion lab --tune` may choose in a method's training, and from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = str | int | float


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    options: tuple[Value, ...]


@dataclass(frozen=True)
class Span:
    """A number from `low` to `high`, any magnitude as likely as any other; a whole one if both bounds are."""

    low: float
    high: float


@dataclass(frozen=True)
class Knob:
    """A setting of training that may be chosen.

    Attributes:
        name: of the setting, see `Method.knobs`.
        values: what it may be.
        only_if: another knob's name and the value it must have for this one to mean anything; else it stays as it is.
    """

    name: str
    values: Choice | Span
    only_if: tuple[str, Value] | None = None

    def matters(self, chosen: Mapping[str, Value]) -> bool:
        """Whether it means anything beside what was chosen before it."""
        return self.only_if is None or chosen.get(self.only_if[0]) == self.only_if[1]


Space = tuple[Knob, ...]
MOST_STEPS = 2000  # that any method may be trained for
COMMON: Space = (  # of every method
    Knob("steps", Span(50, MOST_STEPS)),
    Knob("batch_size", Choice((2, 4, 8))),
    Knob("schedule", Choice(("constant", "cosine"))),
    Knob("weighting", Choice(("uniform", "velocity"))),
    Knob("times", Choice(("uniform", "stratified"))),
    Knob("captions", Choice(("one", "templates"))),
)
NAMING = Knob("naming", Choice(("rare word", "class word")))
ADAPTER: Space = (
    Knob("rank", Choice((1, 4, 16, 32))),
    Knob("part", Choice(("attention", "cross-attention", "keys and values"))),
)
UNET = Knob("part", Choice(("unet", "attention")))


def rate(low: float, high: float) -> Knob:
    """The learning rate."""
    return Knob("learning_rate", Span(low, high))
