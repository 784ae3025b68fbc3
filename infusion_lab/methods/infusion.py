"""Infusion itself, trained as its users train it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.tasks import trainer_for
from infusion_core.residuals import ConceptResidual, zero_residual
from infusion_core.schedule import Window
from infusion_core.streams import BaseLatent
from infusion_core.training.residual import ResidualSettings

from ..studio import Studio
from .method import TEMPLATES, Captions, Customised, Learned, Snapshot, Subject, snapshots

Variant = Literal["", "small", "plain"]
VARIANTS: dict[Variant, str] = {"": "", "small": ", one residual per block", "plain": ", no map replacement"}


@dataclass(frozen=True)
class Infusion:
    """Residuals in the value path of the class word's tokens.

    Attributes:
        settings: of training; steps and seed are set by each run.
        strength: at which the concepts are loaded.
        replacement: when maps are replaced; None for "as it was trained".
        base_latent: see `SampleSettings`.
        captions: what is said of photos, see `Recipe`.
        variant: which of its rows that is, see `VARIANTS`.
    """

    settings: ResidualSettings = field(default_factory=ResidualSettings)
    strength: float = 1.0
    replacement: Window | None = None
    base_latent: BaseLatent = "shared"
    captions: Captions = "templates"
    variant: Variant = ""
    joint: ClassVar = False

    @property
    def key(self) -> str:
        return f"infusion-{self.variant}" if self.variant else "infusion"

    @property
    def title(self) -> str:
        return "Infusion" + VARIANTS[self.variant]

    @property
    def family(self) -> str:
        return "infusion"

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def application(self) -> object:
        return self.strength, self.replacement, self.base_latent

    @property
    def knobs(self) -> Mapping[str, Any]:
        told = {**asdict(self.settings), "captions": self.captions}
        if not self.settings.restraint.measures:
            del told["restraint"]  # runs from before there was one are the same
        return told

    def changed(self, **knobs: Any) -> Infusion:
        captions = knobs.pop("captions", self.captions)
        return replace(self, settings=replace(self.settings, **knobs), captions=captions)

    def run_settings(self, steps: int) -> Mapping[str, Any]:
        """The knobs; the schedule ends with the run."""
        return self.changed(steps=steps, snapshot_every=steps).knobs

    def train(
        self, studio: Studio, subjects: Sequence[Subject], snapshot_steps: Collection[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        (subject,) = subjects
        steps = max(snapshot_steps)
        settings = replace(self.settings, steps=steps, snapshot_every=steps, seed=seed)
        trainer = trainer_for(studio.base, list(subject.photos), subject.word, settings, TEMPLATES[self.captions])
        return snapshots(trainer.run(), lambda: trainer.learned().tensors, subjects, snapshot_steps)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        concepts = tuple(
            LoadedConcept(
                one.subjects[0].name,
                self._residual(studio.base, one),
                self.strength,
                replacement=self.replacement,
            )
            for one in learned
        )
        return Customised(studio.base, tuple(c.residual.word for c in concepts), concepts, self.base_latent)

    def _residual(self, base: EmbeddedModel, one: Learned) -> ConceptResidual:
        """What was learned, saying how."""
        blank = zero_residual(base.denoiser.base, one.subjects[0].word, self.settings.layout)
        return replace(blank, tensors=one.full(base.denoiser.device), training=self.settings.facts)


def trained(**settings: Any) -> Infusion:
    """Infusion with other settings of training."""
    return Infusion(ResidualSettings(**settings))


def without_maps(**settings: Any) -> Infusion:
    """Infusion without map replacement, neither in training nor in sampling.

    Args:
        settings: of training, where they differ from the defaults.
    """
    return replace(trained(replace_maps=False, **settings), variant="plain")


def small() -> Infusion:
    """Infusion in the paper's 11 KB: one residual per UNet block, the same at all noise levels."""
    return replace(trained(layout="block", bins=1), variant="small")
