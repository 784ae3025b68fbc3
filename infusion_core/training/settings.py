"""How to train, whatever is trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InfusionError
from ..noise import SEEDS
from ..schedule import RateSchedule

MOST_STEPS = 500_000
MOST_SNAPSHOTS = 10_000  # of a run; each is a line in its state
MOST_AT_ONCE = 1000  # samples, bins, passes: more is a slip of the finger, and would fill the memory


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of the engine.

    Attributes:
        steps: optimizer steps.
        accumulation: passes per optimizer step.
        learning_rate: of AdamW; an objective may scale it for some of its parameters.
        schedule: ``cosine`` falls to a tenth of the rate over the run, ``constant`` keeps it.
        warmup_steps: over which the rate rises to the schedule's.
        weight_decay: of AdamW.
        clip_norm: norm that the gradient is clipped to; None for no clipping.
        snapshot_every: steps between snapshots; each reports the validation loss.
        validation_draws: fixed draws the validation loss is the mean of; 0 for no validation.
        seed: of every random choice; step i draws from (seed, first_step + i), so a resumed run repeats bit by bit.
        first_step: the number that the first step's random choices are drawn from.

    Raises:
        InfusionError: a number is out of range.
    """

    steps: int = 400
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: RateSchedule = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    snapshot_every: int = 100
    validation_draws: int = 0
    seed: int = 0
    first_step: int = 0

    def __post_init__(self) -> None:
        self._require(steps=MOST_STEPS, accumulation=MOST_AT_ONCE, snapshot_every=MOST_STEPS)
        if self.steps // self.snapshot_every > MOST_SNAPSHOTS:
            raise InfusionError(
                f"{self.steps // self.snapshot_every} snapshots are more than the {MOST_SNAPSHOTS} a run can have; "
                "raise snapshot_every"
            )
        if not 0 < self.learning_rate < math.inf:
            raise InfusionError(f"the learning rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.warmup_steps <= MOST_STEPS:
            raise InfusionError(f"warmup_steps must be 0 to {MOST_STEPS}, got {self.warmup_steps}")
        if not 0 <= self.seed < SEEDS:
            raise InfusionError(f"the seed must be 0 to {SEEDS - 1}, got {self.seed}")

    @property
    def told(self) -> dict[str, Any]:
        """What decides what is learned, as JSON has it; how often snapshots are kept does not."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in told.items() if name != "snapshot_every"}

    def due(self, step: int) -> bool:
        """Whether a run of these settings leaves a snapshot after a step."""
        return step % self.snapshot_every == 0 or step == self.steps

    def _require(self, **most: int) -> None:
        """Fields that must be at least 1, each with the most it may be."""
        for name, limit in most.items():
            value = getattr(self, name)
            if value < 1:
                raise InfusionError(f"{name} must be at least 1, got {value}")
            if value > limit:
                raise InfusionError(f"{name} must be at most {limit}, got {value}")
