"""Parts of a sampling run, and how a learning rate falls over a training run."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
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

    def overlap(self, other: Window) -> Window:
        """The part of the run that lies in both."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Window(start, end) if start < end else NEVER


ALWAYS, NEVER = Window(), Window(0.0, 0.0)


@dataclass(frozen=True)
class Curve:
    """A factor that changes over a sampling run: straight lines between points, level before and after them.

    Two points at one share are a step; from there on the later one counts.

    Attributes:
        points: (share of the run in [0, 1], factor), by share.

    Raises:
        InfusionError: no points, one outside the run or out of order, or a factor that is not a finite number.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise InfusionError("a curve needs at least one point, such as 0:1")
        for share, factor in self.points:
            if not 0 <= share <= 1 or not math.isfinite(factor):
                raise InfusionError(
                    f"a curve's point {share:g}:{factor:g} must be a share of the run in 0 to 1 and a number"
                )
        for (earlier, _), (later, _) in pairwise(self.points):
            if later < earlier:
                raise InfusionError(
                    f"a curve's points must go from the start of the run to its end; {later:g} comes after {earlier:g}"
                )

    def at(self, share: float) -> float:
        """The factor at a share of the run."""
        after = bisect_right(self.points, share, key=itemgetter(0))
        if after in (0, len(self.points)):
            return self.points[max(0, after - 1)][1]
        (x0, y0), (x1, y1) = self.points[after - 1 : after + 1]
        return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def rate_at(step: int, steps: int, rate: float, schedule: RateSchedule, warmup_steps: int = 0) -> float:
    """The learning rate of a step, counted from 0; ``cosine`` falls from `rate` to a tenth of it over the run.

    Over the first `warmup_steps` it rises in a straight line to what the schedule says.
    """
    risen = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return rate * risen
    done = step / max(1, steps - 1)
    return rate * risen * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
