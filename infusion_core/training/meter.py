"""What a run measures of itself at its snapshots, at bounded cost: how overfitted it is, how far it drifts, whether
attention collapses, and when it has come to rest.

Cost is counted in passes of one row through the network, not in seconds: a count is the same on every machine, so a
resumed run measures at the same snapshots as an uninterrupted one. Seconds are noted beside it, for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .overfitting import TEMPERATURE
from .stopping import Loss, StopRule

SHARE = 0.05  # of training that measuring may cost
BACKWARD = 2  # passes that a gradient through one costs: those of activations and of what leads to them


@dataclass(frozen=True)
class Gauge:
    """Something to measure.

    Attributes:
        name: of it, such as ``drift``.
        passes: of one row through the network, that a measurement takes.
        read: measures.
    """

    name: str
    passes: float
    read: Callable[[], float]


@dataclass(frozen=True)
class Reading:
    """What was measured after a step.

    Attributes:
        step: of the training.
        overfitted: gamma for each part of the timesteps on fixed noise, the least noise first, see `Indicator`.
        values: of the gauges, by name; empty where they would have cost too much.
    """

    step: int
    overfitted: list[float]
    values: dict[str, float]


@dataclass
class Meter:
    """Measures a run at its snapshots, as often as its share of the cost allows.

    Attributes:
        reference: validation losses of the base model, (draws,), measured when first needed.
        gauges: what is measured beside them.
        step_passes: of one row through the network, that a training step takes.
        validation_passes: that the validation loss takes.
        temperature: of the indicator.
        share: of the passes of training that all measurements together may take.
        rule: when to stop, and what to take.
        readings: so far.
        spent: passes that measuring has taken.
        seconds: that it has taken since this process began to train; without the validation loss.
    """

    reference: Callable[[], Tensor]
    gauges: Sequence[Gauge]
    step_passes: float
    validation_passes: float
    temperature: float | None = None
    share: float = SHARE
    rule: StopRule = field(default_factory=StopRule)
    readings: list[Reading] = field(default_factory=list)
    spent: float = 0.0
    seconds: float = 0.0
    _base: list[float] | None = None

    def take(self, step: int, losses: Tensor) -> Reading:
        """Measure after a snapshot's step.

        Args:
            step: of the training.
            losses: validation losses, (draws,).
        """
        started = time.perf_counter()
        self.spent += self.validation_passes
        base = torch.tensor(self.base, dtype=torch.float64)
        apart = base - losses.detach().cpu().double()
        gamma = (1 - torch.exp(-(self.temperature or TEMPERATURE) * apart)).clamp(0, 1)
        reading = Reading(step, [round(value, 4) for value in gamma.tolist()], self._read(step))
        self.readings.append(reading)
        self.seconds += time.perf_counter() - started
        return reading

    @property
    def base(self) -> list[float]:
        """Validation losses of the base model."""
        if self._base is None:
            self._base = self.reference().tolist()
            self.spent += self.validation_passes
        return self._base

    @property
    def base_loss(self) -> float:
        """Their mean."""
        return sum(self.base) / len(self.base)

    def rests(self, losses: Sequence[Loss]) -> bool:
        """Whether the run has come to rest, see `StopRule`."""
        return self.rule.rests(self.base_loss, losses)

    def best(self, losses: Sequence[Loss]) -> int | None:
        """The step of the snapshot to take, see `StopRule`."""
        return self.rule.best(self.base_loss, losses)

    def cost(self, step: int) -> float:
        """Passes of measuring over those of training so far."""
        return self.spent / (step * self.step_passes)

    def told(self) -> dict[str, Any]:
        """What `restore` takes; anything JSON can hold."""
        return {"base": self._base, "spent": self.spent, "readings": [asdict(reading) for reading in self.readings]}

    def restore(self, told: Mapping[str, Any]) -> None:
        """Take back what an interrupted run had measured."""
        self._base, self.spent = told["base"], told["spent"]
        self.readings = [Reading(**reading) for reading in told["readings"]]

    def _read(self, step: int) -> dict[str, float]:
        """The gauges, if they fit into what may be spent by now."""
        passes = sum(gauge.passes for gauge in self.gauges)
        if self.spent + passes > self.share * step * self.step_passes:
            return {}
        self.spent += passes
        with torch.no_grad():
            return {gauge.name: gauge.read() for gauge in self.gauges}
