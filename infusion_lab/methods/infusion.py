"""Infusion itself, trained by the project's own trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import NEVER
from infusion_core.embedded.tasks import trainer_for
from infusion_core.residuals import ConceptResidual, zero_residual
from infusion_core.trainer import TrainSettings

from ..studio import Studio
from .method import Customised, Learned, Snapshot, Subject, full


@dataclass(frozen=True)
class Infusion:
    """Residuals in the value path of the class word's tokens.

    Attributes:
        settings: of training; steps and seed are set by each run.
        strength: of the residuals when they are applied.
        sampling: what of `SampleSettings` is to differ.
    """

    settings: TrainSettings = field(default_factory=TrainSettings)
    strength: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    joint: ClassVar = False

    @property
    def key(self) -> str:
        """See `Method.key`."""
        return "infusion" if self.settings.replace_maps else "infusion-plain"

    @property
    def title(self) -> str:
        """See `Method.title`."""
        return "Infusion" if self.settings.replace_maps else "Infusion, no map replacement"

    @property
    def steps(self) -> int:
        """See `Method.steps`."""
        return self.settings.steps

    def run_settings(self, steps: int) -> object:
        """See `Method.run_settings`; the schedule ends with the run."""
        return replace(self.settings, steps=steps)

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        (subject,) = subjects
        steps = max(marks)
        settings = replace(self.settings, steps=steps, seed=seed, snapshot_every=steps)
        trainer = trainer_for(studio.base, list(subject.photos), subject.word, settings)
        seconds, losses, started = 0.0, [], time.perf_counter()
        for report in trainer.run():
            losses.append(report.loss)
            if report.step in marks:
                seconds += time.perf_counter() - started
                learned = Learned.of(subjects, trainer.concept().tensors)
                yield Snapshot(report.step, seconds, sum(losses) / len(losses), learned)
                losses, started = [], time.perf_counter()

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        subjects = [one.subjects[0] for one in learned]
        concepts = {
            s.name: (self._residual(studio.base, s, one), self.strength)
            for s, one in zip(subjects, learned, strict=True)
        }
        return Customised(studio.base, tuple(s.word for s in subjects), concepts, self.sampling)

    def _residual(self, base: EmbeddedModel, subject: Subject, one: Learned) -> ConceptResidual:
        blank = zero_residual(base.denoiser.base, subject.word, self.settings.layout)
        tensors = {k: v * self.strength for k, v in full(one, base.denoiser.device).items()}
        return replace(blank, tensors=tensors)


def without_maps(**settings: Any) -> Infusion:
    """Infusion without map replacement, neither in training nor in sampling.

    Args:
        settings: of training, where they differ from the defaults.
    """
    return Infusion(TrainSettings(replace_maps=False, **settings), sampling={"replacement": NEVER})
