"""What a run has left so far, and what a concept file tells of it. Every front end keeps one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..residuals import ConceptResidual
from ..schedule import rate_at
from .engine import StepReport
from .lora import LoraSettings
from .meter import Meter
from .residual import ResidualSettings
from .stopping import Finish

INDICATED = 200  # how often a run notes its indicator, at most
MEAN_OF = 25  # losses, at most, that a running mean is of


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot that was written: its step, the validation loss if it was measured there, and the file."""

    step: int
    validation_loss: float | None
    file: str


@dataclass
class RunRecord:
    """The course of one training run.

    Attributes:
        settings: of the run.
        images: number of photos.
        resolution: edge that they were scaled to, px.
        losses: of every step.
        validation: step and validation loss, where it was measured.
        snapshots: that were written.
        indicator: step and overfitting per timestep bin, from time to time, where the run takes it.
        meter: measures the run at its snapshots; None for no meter.
    """

    settings: ResidualSettings | LoraSettings
    images: int
    resolution: int
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    snapshots: list[SnapshotFile] = field(default_factory=list)
    indicator: list[tuple[int, list[float]]] = field(default_factory=list)
    meter: Meter | None = None

    def add(self, report: StepReport, gamma: Sequence[float] | None = None, validated: Tensor | None = None) -> None:
        """Note what a step did, and measure the run at a snapshot.

        Args:
            report: of the step.
            gamma: how overfitted the run is after it, per timestep bin, where it takes that.
            validated: the losses that its validation loss is the mean of.
        """
        self.losses.append(report.loss)
        if gamma is not None and (report.step % -(-report.steps // INDICATED) == 0 or report.step == report.steps):
            self.indicator.append((report.step, [round(value, 4) for value in gamma]))
        if report.validation_loss is not None:
            self.validation.append((report.step, report.validation_loss))
            if self.meter is not None and validated is not None:
                self.meter.take(report.step, validated)

    def rests(self, finish: Finish) -> bool:
        """Whether the run has come to rest and is to stop then."""
        return finish.stop == "plateau" and self.meter is not None and self.meter.rests(self.validation)

    def taken(self, finish: Finish, last: int) -> int:
        """The step whose result is kept, of a run that went to step `last`."""
        best = None if finish.take == "last" or self.meter is None else self.meter.best(self.validation)
        return last if best is None else best

    def too_short(self, finish: Finish) -> str:
        """What to say where a run is to end or be judged by its rest, and cannot come to it before its last step."""
        if finish == Finish() or self.meter is None:
            return ""
        settings = self.settings
        first = self.meter.rule.earliest(settings.steps, settings.snapshot_every)
        if first is not None and first < settings.steps:
            return ""
        return (
            f"a run of {settings.steps} steps, snapshots {settings.snapshot_every} apart, cannot come to rest before "
            "its last step, so that is where it ends; raise steps or lower snapshot_every"
        )

    def wrote(self, step: int, file: str) -> None:
        """Note a snapshot of a step, in place of an earlier one of the same step."""
        self.snapshots = [s for s in self.snapshots if s.step != step]
        self.snapshots.append(SnapshotFile(step, self.validated(step), file))

    @property
    def rates(self) -> list[float]:
        """Learning rate of every step so far."""
        of = self.settings
        return [
            rate_at(step, of.steps, of.learning_rate, of.schedule, of.warmup_steps) for step in range(len(self.losses))
        ]

    @property
    def means(self) -> tuple[int, list[float]]:
        """How many losses a running mean is of, and the means; the first is of the step of that number."""
        window = max(1, min(MEAN_OF, len(self.losses)))
        sums = [0.0, *accumulate(self.losses)]
        return window, [(last - first) / window for first, last in zip(sums, sums[window:], strict=False)]

    @property
    def highest(self) -> float:
        """A top for axes of losses, above all but the strayest."""
        told = sorted([*self.losses, *(loss for _, loss in self.validation)])
        return 1.1 * told[round(0.99 * (len(told) - 1))] or 1.0

    def validated(self, step: int) -> float | None:
        """The validation loss of a step, if it was measured there."""
        return dict(self.validation).get(step)

    def described(self, concept: ConceptResidual, step: int, title: str, thumbnail: bytes) -> ConceptResidual:
        """A concept, as learned after `step` steps, with what its file tells of the run."""
        return replace(concept, training={**concept.training, **self.facts(step, title)}, thumbnail=thumbnail)

    def facts(self, step: int, title: str) -> dict[str, str]:
        """What a file tells of the run after `step` steps."""
        settings, validation = self.settings, self.validated(step)
        facts = {
            "steps": str(step),
            "lr": f"{settings.learning_rate:g}",
            "batch": str(settings.batch_size * settings.accumulation),
            "images": str(self.images),
            "seed": str(settings.seed),
            "resolution": f"{self.resolution}x{self.resolution}",
            "title": title,
        }
        if validation is not None:
            facts["validation_loss"] = f"{validation:.5f}"
        return facts

    def restore(self, told: Mapping[str, Any]) -> None:
        """Take back the course of the interrupted run, as `course` told it; not the snapshot that its end left."""
        self.losses = list(told["losses"])
        self.validation = [(step, loss) for step, loss in told["validation"]]
        snapshots = [SnapshotFile(**snapshot) for snapshot in told["snapshots"]]
        self.snapshots = [s for s in snapshots if s.validation_loss is not None or self.settings.due(s.step)]
        self.indicator = [(step, gamma) for step, gamma in told.get("indicator", [])]
        if self.meter is not None and "meter" in told:
            self.meter.restore(told["meter"])

    def course(self) -> dict[str, Any]:
        """Losses and snapshots, for a report and for `restore`; anything JSON can hold."""
        told: dict[str, Any] = {
            "losses": list(self.losses),
            "validation": [list(measured) for measured in self.validation],
            "snapshots": [vars(snapshot) for snapshot in self.snapshots],
        }
        told |= {"indicator": [list(taken) for taken in self.indicator]} if self.indicator else {}
        return told | ({} if self.meter is None else {"meter": self.meter.told()})
