"""What the baselines share: diffusers' example scripts as an objective of the engine.

Plain noise prediction on photos and class pictures, timesteps uniform, AdamW at a constant rate, clipped gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from infusion_core.attention import Plan
from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.noise import seeded
from infusion_core.training.engine import Trainer
from infusion_core.training.objective import Noised, ParameterGroup, uniform_times
from infusion_core.training.settings import TrainSettings
from infusion_core.training.state import TrainState

from ..studio import Studio, text_states
from .method import Customised, Learned, Recipe, Snapshot, Subject, Tensors, halved, snapshots

PLAIN = CAPTION_TEMPLATES[:1]  # the one caption of DreamBooth and Custom Diffusion
WEIGHT_DECAY, CLIP_NORM = 1e-2, 1.0  # AdamW's own and the scripts'


@dataclass(frozen=True)
class Example:
    """A clean latent (C, h, w), what is said of it, and the weight of its loss."""

    latent: Tensor
    caption: str
    weight: float = 1.0


@dataclass(frozen=True)
class Material:
    """What is shown of one subject.

    Attributes:
        photos: encoded, (N, C, h, w).
        captions: any of them is said of any photo.
        class_pictures: encoded, (M, C, h, w), or None.
        class_caption: said of class pictures.
        class_weight: of their loss.
    """

    photos: Tensor
    captions: Sequence[str]
    class_pictures: Tensor | None
    class_caption: str
    class_weight: float

    def sample(self, generator: Generator) -> list[Example]:
        """A photo and, where there are any, a class picture."""
        examples = [Example(self.photos[_any(self.photos, generator)], self.captions[_any(self.captions, generator)])]
        if self.class_pictures is not None:
            latent = self.class_pictures[_any(self.class_pictures, generator)]
            examples.append(Example(latent, self.class_caption, self.class_weight))
        return examples


@dataclass
class BaselineObjective:
    """Noise prediction with a model that holds what is trained.

    Attributes:
        model: whose network and text encoder hold it.
        materials: what is shown, per subject.
        batch_size: photos per batch, of subjects at random.
        trained: what is trained.
        tensors: gives what has been learned, which may be more or less.
    """

    model: EmbeddedModel
    materials: Sequence[Material]
    batch_size: int
    trained: Sequence[ParameterGroup]
    tensors: Callable[[], Tensors]

    def groups(self) -> Sequence[ParameterGroup]:
        return self.trained

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The weighted errors of one batch, whose mean is the sum over its examples divided by the batch size."""
        examples = self._sample(self.batch_size, generator)
        errors = self._errors(examples, generator)
        weights = torch.tensor([example.weight for example in examples]).to(errors)
        return {"denoising": errors * weights * (len(examples) / self.batch_size)}

    def validation(self, draws: int, seed: int) -> Tensor:
        generator = seeded(seed)
        return self._errors(self._sample(draws, generator)[:draws], generator)

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> Tensors:
        """What has been learned so far, in half precision as it would be stored."""
        return halved(self.tensors())

    def extra_state(self) -> Mapping[str, Tensor]:
        """Nothing beside what is trained."""
        return {}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def _sample(self, photos: int, generator: Generator) -> list[Example]:
        return [
            example
            for _ in range(photos)
            for example in self.materials[_any(self.materials, generator)].sample(generator)
        ]

    def _errors(self, examples: Sequence[Example], generator: Generator) -> Tensor:
        """Squared error of noise prediction per example, (B,)."""
        denoiser = self.model.denoiser
        latents = torch.stack([example.latent for example in examples])
        states = text_states(self.model, [example.caption for example in examples])
        times = uniform_times(len(latents), len(denoiser.sigmas), generator)
        eps = torch.randn(latents.shape, generator=generator)
        noised = Noised.of(latents, times, eps, denoiser.sigmas, denoiser.prediction)
        return noised.errors(denoiser.predict(noised.latents, noised.sigma, Conditioning(states), Plan()))


@dataclass(frozen=True)
class Baseline(ABC):
    """A method whose training is a `BaselineObjective`.

    Attributes:
        recipe: how it is trained.
        key, title, joint: see `Method`.
        decay: AdamW's weight decay.
    """

    recipe: Recipe
    key: ClassVar[str]
    title: ClassVar[str]
    joint: ClassVar[bool]
    decay: ClassVar[float] = WEIGHT_DECAY

    @property
    def steps(self) -> int:
        return self.recipe.steps

    @property
    def application(self) -> object:
        return None

    def run_settings(self, steps: int) -> Recipe:
        """The recipe; the learning rate is constant, so the number of steps is left out."""
        return replace(self.recipe, steps=0)

    @abstractmethod
    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        """What training minimises, on a copy of the studio's model; `seed` is of what training starts from."""

    @abstractmethod
    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised: ...

    def trainer(
        self, studio: Studio, subjects: Sequence[Subject], steps: int, seed: int = 0, state: TrainState | None = None
    ) -> Trainer[Tensors]:
        """The engine on the objective; `state` of an earlier run of as many steps goes on where that stopped."""
        settings = TrainSettings(
            steps=steps,
            learning_rate=self.recipe.learning_rate,
            weight_decay=self.decay,
            clip_norm=CLIP_NORM,
            snapshot_every=steps,
            seed=seed,
            first_step=1,
        )
        return Trainer(self.objective(studio, subjects, seed), settings, state)

    def train(
        self, studio: Studio, subjects: Sequence[Subject], snapshot_steps: Collection[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        trainer = self.trainer(studio, subjects, max(snapshot_steps), seed)
        return snapshots(trainer.run(), trainer.learned, subjects, snapshot_steps)

    def materials(
        self, studio: Studio, model: EmbeddedModel, subjects: Sequence[Subject], phrases: Sequence[str],
        templates: Sequence[str] = PLAIN,
    ) -> list[Material]:  # fmt: skip
        """What is shown of subjects.

        Args:
            studio: for class pictures, if the recipe weighs them.
            model: that encodes the photos.
            subjects: what is learned.
            phrases: per subject, what a caption says for it.
            templates: captions with ``{}``.
        """
        weight = self.recipe.prior_weight
        return [
            Material(
                model.encode(list(subject.photos)),
                [template.format(phrase) for template in templates],
                studio.class_latents(subject.word) if weight else None,
                PLAIN[0].format(subject.word),
                weight,
            )
            for subject, phrase in zip(subjects, phrases, strict=True)
        ]


def after_rare_word(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Per subject the class word after the rare word: ``v1 circle``."""
    return tuple(f"{s.rare_word} {s.word}" for s in subjects)


def _any(things: Sequence[object] | Tensor, generator: Generator) -> int:
    """An index of one of the things, at random."""
    return int(torch.randint(len(things), (), generator=generator))
