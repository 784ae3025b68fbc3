"""What every way of personalising a model looks like to the lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import Loaded, draw

from ..studio import Studio

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """What is to be learned.

    Attributes:
        name: of the subject.
        word: its class word.
        photos: of it.
        mark: the spare word that stands for it, for methods that teach a new word.
    """

    name: str
    word: str
    photos: tuple[Image.Image, ...]
    mark: str = "v1"


@dataclass(frozen=True)
class Learned:
    """What one training run learned, in half precision as it would be stored."""

    subjects: tuple[Subject, ...]
    tensors: Tensors

    @classmethod
    def of(cls, subjects: Sequence[Subject], tensors: Tensors) -> Learned:
        """A detached half-precision copy of `tensors`."""
        return cls(tuple(subjects), {k: v.detach().half().clone().contiguous() for k, v in tensors.items()})

    @property
    def data(self) -> bytes:
        """The safetensors file that a user would keep."""
        data: bytes = safetensors.torch.save(dict(self.tensors))
        return data


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained.

    Attributes:
        steps: optimizer steps.
        learning_rate: of AdamW, constant.
        batch_size: photos per step.
        prior_weight: of the loss on class pictures, as many per step as photos; 0 leaves them out.
    """

    steps: int
    learning_rate: float
    batch_size: int = 4
    prior_weight: float = 0.0


@dataclass(frozen=True)
class Baseline:
    """What the baselines share: a recipe. The names are those of `Method`."""

    recipe: Recipe
    key: ClassVar[str]
    title: ClassVar[str]
    joint: ClassVar[bool]

    @property
    def steps(self) -> int:
        """See `Method.steps`."""
        return self.recipe.steps

    def run_settings(self, steps: int) -> object:
        """See `Method.run_settings`; the learning rate is constant, so the number of steps is left out."""
        return replace(self.recipe, steps=0)


@dataclass(frozen=True)
class Snapshot:
    """The state after `step` steps: seconds of training so far, and the mean loss since the snapshot before."""

    step: int
    seconds: float
    loss: float
    learned: Learned


@dataclass(frozen=True)
class Customised:
    """A model with what was learned in it.

    Attributes:
        model: to draw and to predict with.
        phrases: per subject, what a prompt says for it.
        concepts: residuals in force, if the method has any.
        sampling: what of `SampleSettings` the method wants otherwise.
    """

    model: EmbeddedModel
    phrases: tuple[str, ...]
    concepts: Loaded = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, prompt: str, count: int, seed: int, settings: SampleSettings) -> list[Image.Image]:
        """Pictures of a prompt, at seeds from `seed` on."""
        return draw(self.model, prompt, self.concepts, count, seed, replace(settings, **self.sampling))


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
    def joint(self) -> bool:
        """Whether several subjects are trained together; else what was learned of each is combined."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps it is usually trained for."""
        ...

    def run_settings(self, steps: int) -> object:
        """What a run of so many steps depends on; equal ones have equal snapshots up to the shorter run's end."""
        ...

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """Train for ``max(marks)`` steps, yielding after every step in `marks`."""
        ...

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """The model with what was learned in it; the studio's own is not changed. A joint method takes one run's."""
        ...


def full(learned: Learned, device: torch.device) -> dict[str, Tensor]:
    """What was learned in single precision on a device."""
    return {k: v.to(device, torch.float32) for k, v in learned.tensors.items()}
