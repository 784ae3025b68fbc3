"""When a run has learned what it will, and which of its snapshots to take: from the validation loss on fixed noise.

What counts is the gain, by how much less a run errs on its photos than the base model. It has no unit, so one rule
serves models whose losses are of any size, residuals and LoRAs. Chosen and measured on TinyWorld (docs/lab.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InfusionError

Stop = Literal["never", "plateau"]
Take = Literal["last", "best"]
Loss = tuple[int, float]  # a step, and the validation loss after it


@dataclass(frozen=True)
class Finish:
    """How a run ends, as users choose.

    Attributes:
        stop: ``plateau``: at the snapshot at which it comes to rest, see `StopRule`; ``never``: after its last step.
        take: ``best``: what is kept is that snapshot, however long the run goes on; ``last``: the last step's.
    """

    stop: Stop = "never"
    take: Take = "last"


@dataclass(frozen=True)
class StopRule:
    """When to stop, and what to take.

    Attributes:
        late_gain: a run slows down where the second half of its steps so far has brought less than this share of its
            gain. Halves do not know the learning rate.
        patience: it has come to rest when it slows down at so many snapshots, one after the other.
        apart: steps before and between the snapshots that are looked at; those that come sooner are passed over. A loss
            comes to rest before pictures do, so it must not be asked more often than the rule was measured with.

    Raises:
        InfusionError: a number is out of range.
    """

    late_gain: float = 0.25
    patience: int = 3
    apart: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.late_gain < 1:
            raise InfusionError(f"late_gain must be 0 to 1, got {self.late_gain:g}")
        for name in ("patience", "apart"):
            if getattr(self, name) < 1:
                raise InfusionError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rests(self, base: float, losses: Sequence[Loss]) -> bool:
        """Whether a run has come to rest after the last of its snapshots.

        Args:
            base: validation loss of the base model.
            losses: of the snapshots so far, in order.
        """
        seen = self._seen(losses)
        if not seen or seen[-1] != losses[-1]:
            return False
        return all(self._slow(base, seen[: len(seen) - back]) for back in range(self.patience))

    def best(self, base: float, losses: Sequence[Loss]) -> int | None:
        """The step of the snapshot to take: the first at which the run rests; None if it never does.

        The loss is of the photos themselves, so it goes on to fall while they are learned by heart and prompts are
        obeyed less: its least value says nothing.

        Args:
            base, losses: see `rests`.
        """
        ends = (step for count, (step, _) in enumerate(losses, 1) if self.rests(base, losses[:count]))
        return next(ends, None)

    def earliest(self, steps: int, every: int) -> int | None:
        """The first step at which a run could come to rest; None if it ends sooner.

        Args:
            steps: of the run.
            every: steps between its snapshots; the last step has one too.
        """
        snapshots = dict.fromkeys([*range(every, steps + 1, every), steps])
        return self.best(1.0, [(step, 0.0) for step in snapshots])

    def _seen(self, losses: Sequence[Loss]) -> list[Loss]:
        """The snapshots that are looked at."""
        seen, last = list[Loss](), 0
        for step, loss in losses:
            if step - last >= self.apart:
                seen.append((step, loss))
                last = step
        return seen

    def _slow(self, base: float, losses: Sequence[Loss]) -> bool:
        """Whether a run slows down at its last snapshot; never at its first, nor before it has gained anything."""
        step, now = losses[-1]
        before = [loss for earlier, loss in losses if 2 * earlier <= step]
        return bool(before) and now < base and before[-1] - now < self.late_gain * (base - now)
