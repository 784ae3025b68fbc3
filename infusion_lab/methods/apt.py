"""APT, and the rungs of its ladder: an ordinary LoRA, then one restraint after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from infusion_core.captions import fill
from infusion_core.embedded.adapters import with_lora
from infusion_core.embedded.lora import apt_trainer
from infusion_core.lora_file import parse_lora
from infusion_core.training.apt import AptObjective, AptSettings

from ..studio import Studio, customisable
from .method import TEMPLATES, Captions, Customised, Learned, Naming, Snapshot, Subject, snapshots

Rung = Literal["plain", "adaptive", "stabilised", ""]
RUNGS: dict[Rung, str] = {
    "plain": "LoRA, unrestrained",
    "adaptive": "LoRA, + adaptive training",
    "stabilised": "LoRA, + stabilisation",
    "": "APT (+ alignment)",
}
RECIPE = AptSettings(rank=4, times="uniform", weighting="uniform", steps=2000)  # as the published LoRA's


@dataclass(frozen=True)
class Apt:
    """A LoRA that watches its own overfitting.

    Attributes:
        settings: of training, with every restraint on; steps and seed are set by each run.
        rung: how many restraints are at work.
        captions: what is said of photos, see `Recipe`.
        naming: what a prompt says, see `Recipe`.
    """

    settings: AptSettings = RECIPE
    rung: Rung = ""
    captions: Captions = "one"
    naming: Naming = "rare word"
    joint: ClassVar = False
    family: ClassVar = "apt"

    @property
    def key(self) -> str:
        return f"apt-{self.rung}" if self.rung else "apt"

    @property
    def title(self) -> str:
        return RUNGS[self.rung]

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def application(self) -> object:
        return None

    @property
    def knobs(self) -> Mapping[str, Any]:
        return {**asdict(self.climbed), "captions": self.captions, "naming": self.naming}

    @property
    def climbed(self) -> AptSettings:
        """The settings with the restraints of the rung."""
        settings = self.settings
        if self.rung == "plain":
            return settings.unrestrained
        if self.rung == "adaptive":
            return replace(settings, stabilisation=0.0, alignment=0.0)
        return replace(settings, alignment=0.0) if self.rung == "stabilised" else settings

    def changed(self, **knobs: Any) -> Apt:
        own = {name: knobs.pop(name) for name in ("captions", "naming") if name in knobs}
        return replace(self, settings=replace(self.settings, **knobs), **own)

    def run_settings(self, steps: int) -> Mapping[str, Any]:
        """The knobs; a constant learning rate does not depend on the number of steps, so that is left out."""
        return self.changed(steps=1 if self.settings.schedule == "constant" else steps, snapshot_every=1).knobs

    def train(
        self, studio: Studio, subjects: Sequence[Subject], snapshot_steps: Collection[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        trainer, objective = self.trainer(studio, subjects, max(snapshot_steps), seed)
        with objective.lora.installed():
            yield from snapshots(trainer.run(), trainer.learned, subjects, snapshot_steps)

    def trainer(
        self, studio: Studio, subjects: Sequence[Subject], steps: int, seed: int = 0
    ) -> tuple[Any, AptObjective]:
        """The engine, and its objective, on a copy of the studio's model."""
        (subject,) = subjects
        settings = replace(self.climbed, steps=steps, snapshot_every=steps, validation_draws=0, seed=seed)
        captions = fill(TEMPLATES[self.captions], subject.phrase(self.naming))
        trainer = apt_trainer(customisable(studio.base), list(subject.photos), captions, settings)
        objective = trainer.objective
        assert isinstance(objective, AptObjective)
        return trainer, objective

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        model = studio.base
        alpha = self.settings.alpha
        for one in learned:
            lora = parse_lora(one.full(studio.base.denoiser.device), None if alpha is None else {"unet": alpha})
            model = with_lora(model, lora, one.subjects[0].name)
        return Customised(model, tuple(one.subjects[0].phrase(self.naming) for one in learned))


def ladder() -> list[Apt]:
    """Every rung, the lowest first."""
    return [Apt(rung=rung) for rung in RUNGS]
