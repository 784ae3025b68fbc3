"""What a run has left so far, and what a concept file tells of it. Every front end keeps one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..residuals import ConceptResidual
from .engine import StepReport
from .residual import ResidualSettings


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
    """

    settings: ResidualSettings
    images: int
    resolution: int
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    snapshots: list[SnapshotFile] = field(default_factory=list)

    def add(self, report: StepReport) -> None:
        """Note what a step did."""
        self.losses.append(report.loss)
        if report.validation_loss is not None:
            self.validation.append((report.step, report.validation_loss))

    def wrote(self, step: int, file: str) -> None:
        """Note a snapshot of a step, in place of an earlier one of the same step."""
        self.snapshots = [s for s in self.snapshots if s.step != step]
        self.snapshots.append(SnapshotFile(step, self.validated(step), file))

    def validated(self, step: int) -> float | None:
        """The validation loss of a step, if it was measured there."""
        return dict(self.validation).get(step)

    def described(self, concept: ConceptResidual, step: int, title: str, thumbnail: bytes) -> ConceptResidual:
        """A concept, as learned after `step` steps, with what its file tells of the run."""
        settings, validation = self.settings, self.validated(step)
        facts = {
            **concept.training,
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
        return replace(concept, training=facts, thumbnail=thumbnail)

    def restore(self, told: Mapping[str, Any]) -> None:
        """Take back the course of the interrupted run, as `course` told it."""
        self.losses = list(told["losses"])
        self.validation = [(step, loss) for step, loss in told["validation"]]
        self.snapshots = [SnapshotFile(**snapshot) for snapshot in told["snapshots"]]

    def course(self) -> dict[str, Any]:
        """Losses and snapshots, for a report and for `restore`; anything JSON can hold."""
        return {
            "losses": list(self.losses),
            "validation": [list(measured) for measured in self.validation],
            "snapshots": [vars(snapshot) for snapshot in self.snapshots],
        }
