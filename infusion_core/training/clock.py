"""What a run says of itself while it goes on: loss, rate, time left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .engine import StepReport

EVERY = 1.0  # seconds between two texts


@dataclass
class Clock:
    """Tells how long a run still takes.

    Attributes:
        first: steps that were done before the clock started.
    """

    first: int
    _started: float = field(default_factory=time.monotonic, init=False)
    _last: float = field(default=0.0, init=False)

    def due(self, report: StepReport) -> bool:
        """Whether it is time for a text: after the first step, every second, and at the end."""
        now = time.monotonic()
        if now - self._last < EVERY and report.step != report.steps:
            return False
        self._last = now
        return True

    def left(self, step: int, steps: int) -> str:
        """Time that is left after a step, as minutes and seconds; nothing can be said before the first."""
        if step <= self.first:
            return "?"
        pace = (time.monotonic() - self._started) / (step - self.first)
        left = round(pace * (steps - step))
        return f"{left // 60}:{left % 60:02d}"

    def told(self, report: StepReport) -> str:
        """What a step says."""
        return (
            f"step {report.step} of {report.steps}, loss {report.loss:.4f}, rate {report.learning_rate:.3g}, "
            f"{self.left(report.step, report.steps)} left"
        )
