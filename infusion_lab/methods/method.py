"""What every way of personalising a model looks like to the lab."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.concepts import LoadedConcept
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.blend import draw_blended
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.schedule import RateSchedule
from infusion_core.streams import BaseLatent
from infusion_core.training.engine import StepReport
from infusion_core.training.objective import Times, Weighting

from ..identity import digest_of_pictures
from ..studio import Studio

Tensors = Mapping[str, Tensor]
Captions = Literal["one", "templates"]
Part = Literal["unet", "attention", "cross-attention", "keys and values"]
Naming = Literal["rare word", "class word"]
TEMPLATES: dict[Captions, tuple[str, ...]] = {"one": CAPTION_TEMPLATES[:1], "templates": CAPTION_TEMPLATES}


@dataclass(frozen=True)
class Subject:
    """What is to be learned.

    Attributes:
        name: of the subject.
        word: its class word.
        photos: of it.
        rare_word: stands for it, for methods that teach a new word.
    """

    name: str
    word: str
    photos: tuple[Image.Image, ...]
    rare_word: str

    @cached_property
    def identity(self) -> str:
        """What it is: every word and every pixel."""
        return f"{self.name} {self.word} {self.rare_word} {digest_of_pictures(self.photos)}"

    def phrase(self, naming: Naming) -> str:
        """What a prompt says for it where no word is learned: ``v1 circle``, or ``circle``."""
        return f"{self.rare_word} {self.word}" if naming == "rare word" else self.word


@dataclass(frozen=True)
class Learned:
    """What one training run learned, as it would be stored: in half precision."""

    subjects: tuple[Subject, ...]
    tensors: Tensors

    @property
    def data(self) -> bytes:
        """The safetensors file that a user would keep."""
        data: bytes = safetensors.torch.save(dict(self.tensors))
        return data

    def full(self, device: torch.device) -> dict[str, Tensor]:
        """The tensors in single precision on a device."""
        return {k: v.to(device, torch.float32) for k, v in self.tensors.items()}


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained; by default as diffusers' scripts do.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW.
        batch_size: photos per step.
        prior_weight: of the loss on class pictures, as many per step as photos; 0 leaves them out.
        schedule: of the learning rate, see `TrainSettings`.
        weighting: of the loss over noise levels, see `loss_weights`.
        times: how a batch's timesteps are chosen, see `timesteps`.
        captions: what is said of photos: one caption, or any of Infusion's templates.
        part: of the UNet that is trained, or that gets an adapter; what is trained of it is the method's own.
        rank: of the adapter, for methods that have one.
        naming: what a prompt says: the rare word before the class word, or the class word alone; for methods that
            learn no word.
        beta: of DCO, how far it may go from the base model: the larger, the less.
        gate: of Perfusion, the bias of its gate in drawing; it is trained with 0.75.
    """

    steps: int
    learning_rate: float
    batch_size: int = 4
    prior_weight: float = 0.0
    schedule: RateSchedule = "constant"
    weighting: Weighting = "uniform"
    times: Times = "uniform"
    captions: Captions = "one"
    part: Part = "attention"
    rank: int = 4
    naming: Naming = "rare word"
    beta: float = 1000.0
    gate: float = 0.75


@dataclass(frozen=True)
class Snapshot:
    """A state of training that is kept: after `step` steps, `seconds` of training so far."""

    step: int
    seconds: float
    learned: Learned


@dataclass(frozen=True)
class Customised:
    """A model with what was learned in it.

    Attributes:
        model: to draw and to predict with.
        phrases: per subject, what a prompt says for it.
        concepts: residuals at work, if the method has any.
        base_latent: see `SampleSettings`.
    """

    model: EmbeddedModel
    phrases: tuple[str, ...]
    concepts: tuple[LoadedConcept, ...] = ()
    base_latent: BaseLatent = "shared"

    def sampling(self, settings: SampleSettings) -> SampleSettings:
        """The settings as the method wants them."""
        return replace(settings, base_latent=self.base_latent)

    def draw(self, prompt: str, count: int, seed: int, settings: SampleSettings) -> list[Image.Image]:
        """Pictures of a prompt, at seeds from `seed` on."""
        return draw(self.model, prompt, self.concepts, count, seed, self.sampling(settings))


@dataclass(frozen=True)
class Guided(Customised):
    """A customised model that an earlier stage of its training guides (DreamBlend).

    Attributes:
        early: G.
        blend: how it guides.
    """

    early: EmbeddedModel = field(kw_only=True)
    blend: BlendSettings = field(kw_only=True)

    def draw(self, prompt: str, count: int, seed: int, settings: SampleSettings) -> list[Image.Image]:
        """Pictures of a prompt, at seeds from `seed` on."""
        return draw_blended(self.early, self.model, prompt, count, seed, settings, self.blend)[0]


class Method(Protocol):
    """One way of personalising a model."""

    @property
    def key(self) -> str:
        """Short name, for files and options."""
        ...

    @property
    def title(self) -> str:
        """Name, for people."""
        ...

    @property
    def family(self) -> str:
        """Key that its variants share: the same method, trained by other recipes."""
        ...

    @property
    def joint(self) -> bool:
        """Whether several subjects are trained together; else what was learned of each is combined."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps it is usually trained for."""
        ...

    @property
    def application(self) -> object:
        """What `apply` depends on beside what was learned."""
        ...

    @property
    def knobs(self) -> Mapping[str, Any]:
        """Everything that can be chosen in its training, by name."""
        ...

    def changed(self, **knobs: Any) -> Method:
        """The same method with some knobs set otherwise."""
        ...

    def run_settings(self, steps: int) -> Mapping[str, Any]:
        """What a run of so many steps depends on; equal ones have equal snapshots up to the shorter run's end."""
        ...

    def train(
        self, studio: Studio, subjects: Sequence[Subject], snapshot_steps: Collection[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """Train to the last of some steps, yielding after each of them."""
        ...

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """The model with what was learned in it; the studio's own is not changed. A joint method takes one run's."""
        ...


def snapshots(
    run: Iterable[StepReport], tensors: Callable[[], Tensors], subjects: Sequence[Subject], steps: Collection[int]
) -> Iterator[Snapshot]:
    """The states of a run after some of its steps.

    Args:
        run: of the engine.
        tensors: what has been learned so far.
        subjects: what is learned.
        steps: to keep.
    """
    seconds, started = 0.0, time.perf_counter()
    for report in run:
        if report.step in steps:
            seconds += time.perf_counter() - started
            yield Snapshot(report.step, seconds, Learned(tuple(subjects), halved(tensors())))
            started = time.perf_counter()


def halved(tensors: Tensors) -> Tensors:
    """A detached half-precision copy."""
    return {k: v.detach().to(torch.float16, copy=True).contiguous() for k, v in tensors.items()}
