"""Parts of a sampling run, and how a learning rate falls over a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import InfusionError

RateSchedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Window:
    """A part of a sampling run, from `start` to before `end`, both shares of the run in [0, 1].

    Raises:
        InfusionError: the numbers are outside 0 to 1, or the window ends before it starts.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InfusionError(f"start {self.start:g} and end {self.end:g} must lie in 0 to 1, start before end")

    def covers(self, done: float) -> bool:
        """Whether a step that begins at that share of the run lies inside."""
        return self.start <= done < self.end


ALWAYS, NEVER = Window(), Window(0.0, 0.0)


def rate_at(step: int, steps: int, rate: float, schedule: RateSchedule) -> float:
    """The learning rate of a step, counted from 0; ``cosine`` falls from `rate` to a tenth of it over the run."""
    if schedule == "constant":
        return rate
    done = step / max(1, steps - 1)
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
