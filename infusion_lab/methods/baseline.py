"""What the baselines share: diffusers' example scripts as an objective of the engine.

Noise prediction on photos and class pictures with AdamW and clipped gradients; unless a recipe says otherwise with
uniform timesteps, no weighting of noise levels, and at a constant rate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from infusion_core.attention import Plan
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.noise import seeded
from infusion_core.training.engine import Trainer
from infusion_core.training.objective import Noised, ParameterGroup, loss_weights, timesteps
from infusion_core.training.settings import TrainSettings
from infusion_core.training.state import TrainState

from ..studio import Studio, text_states
from .method import TEMPLATES, Customised, Learned, Recipe, Snapshot, Subject, Tensors, halved, snapshots

Variant = Literal["", "published", "likeness"]
WEIGHT_DECAY, CLIP_NORM = 1e-2, 1.0  # AdamW's own and the scripts'
VARIANTS: dict[Variant, str] = {"published": ", published", "likeness": ", tuned for likeness", "": ""}


@dataclass(frozen=True)
class Example:
    """A clean latent (C, h, w), what is said of it with the subject and with the class word, its loss's weight."""

    latent: Tensor
    caption: str
    plain_caption: str
    weight: float = 1.0


@dataclass(frozen=True)
class Material:
    """What is shown of one subject.

    Attributes:
        photos: encoded, (N, C, h, w).
        templates: any of them is said of any photo.
        phrase: what it says for the subject.
        word: the class word, said of class pictures.
        class_pictures: encoded, (M, C, h, w), or None.
        class_weight: of their loss.
    """

    photos: Tensor
    templates: Sequence[str]
    phrase: str
    word: str
    class_pictures: Tensor | None
    class_weight: float

    def sample(self, generator: Generator) -> list[Example]:
        """A photo and, where there are any, a class picture."""
        photo, template = self.photos[_any(self.photos, generator)], self.templates[_any(self.templates, generator)]
        examples = [Example(photo, template.format(self.phrase), template.format(self.word))]
        if self.class_pictures is not None:
            latent = self.class_pictures[_any(self.class_pictures, generator)]
            (template,) = TEMPLATES["one"]
            caption = template.format(self.word)
            examples.append(Example(latent, caption, caption, self.class_weight))
        return examples


@dataclass(frozen=True)
class Batch:
    """Examples, noised.

    Attributes:
        examples: of them.
        noised: their latents at noise levels.
        weights: of their losses by noise level, (B,).
    """

    examples: Sequence[Example]
    noised: Noised
    weights: Tensor


@dataclass
class BaselineObjective:
    """Noise prediction with a model that holds what is trained.

    Attributes:
        model: whose network and text encoder hold it.
        materials: what is shown, per subject.
        recipe: how to train; a batch has photos of subjects at random.
        trained: what is trained.
        tensors: gives what has been learned, which may be more or less.
    """

    model: EmbeddedModel
    materials: Sequence[Material]
    recipe: Recipe
    trained: Sequence[ParameterGroup]
    tensors: Callable[[], Tensors]

    def groups(self) -> Sequence[ParameterGroup]:
        return self.trained

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The weighted errors of one batch, whose mean is the sum over its examples divided by the batch size."""
        batch = self._batch(self._sample(self.recipe.batch_size, generator), generator)
        weights = torch.tensor([example.weight for example in batch.examples]).to(batch.weights)
        errors = self._errors(batch)
        return {"denoising": errors * weights * (len(batch.examples) / self.recipe.batch_size) * batch.weights}

    def validation(self, draws: int, seed: int) -> Tensor:
        generator = seeded(seed)
        return self._errors(self._batch(self._sample(draws, generator)[:draws], generator))

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

    def _batch(self, examples: Sequence[Example], generator: Generator) -> Batch:
        denoiser, recipe = self.model.denoiser, self.recipe
        latents = torch.stack([example.latent for example in examples])
        times = timesteps(recipe.times, len(latents), len(denoiser.sigmas), generator)
        if recipe.times == "stratified":  # in any order: photos and class pictures take turns in a batch
            times = times[torch.randperm(len(times), generator=generator)]
        eps = torch.randn(latents.shape, generator=generator)
        noised = Noised.of(latents, times, eps, denoiser.sigmas, denoiser.prediction)
        return Batch(examples, noised, loss_weights(recipe.weighting, denoiser.sigmas)[times].to(noised.sigma))

    def _errors(self, batch: Batch, plain: bool = False) -> Tensor:
        """Squared error of noise prediction per example, (B,); `plain`: of what is said with the class word."""
        states = text_states(self.model, [e.plain_caption if plain else e.caption for e in batch.examples])
        noised = batch.noised
        return noised.errors(self.model.denoiser.predict(noised.latents, noised.sigma, Conditioning(states), Plan()))


@dataclass(frozen=True)
class Baseline(ABC):
    """A method whose training is a `BaselineObjective`.

    Attributes:
        recipe: how it is trained.
        variant: which of its recipes that is; tuned by the headline unless told otherwise.
        family: of all its variants, the key of the one without a name.
        name: of the family, for people.
        joint: see `Method`.
        decay: AdamW's weight decay.
    """

    recipe: Recipe
    variant: Variant = ""
    family: ClassVar[str]
    name: ClassVar[str]
    joint: ClassVar[bool]
    decay: ClassVar[float] = WEIGHT_DECAY

    @property
    def key(self) -> str:
        return f"{self.family}-{self.variant}" if self.variant else self.family

    @property
    def title(self) -> str:
        return self.name + VARIANTS[self.variant]

    @property
    def steps(self) -> int:
        return self.recipe.steps

    @property
    def application(self) -> object:
        return None

    @property
    def knobs(self) -> Mapping[str, Any]:
        return asdict(self.recipe)

    def changed(self, **knobs: Any) -> Baseline:
        return replace(self, recipe=replace(self.recipe, **knobs))

    def run_settings(self, steps: int) -> Mapping[str, Any]:
        """The recipe; a constant learning rate does not depend on the number of steps, so that is left out."""
        return self.changed(steps=0 if self.recipe.schedule == "constant" else steps).knobs

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
            schedule=self.recipe.schedule,
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

    def phrases(self, subjects: Sequence[Subject]) -> tuple[str, ...]:
        """Per subject what a prompt says for it, where no word is learned."""
        return tuple(subject.phrase(self.recipe.naming) for subject in subjects)

    def materials(
        self, studio: Studio, model: EmbeddedModel, subjects: Sequence[Subject], phrases: Sequence[str]
    ) -> list[Material]:
        """What is shown of subjects.

        Args:
            studio: for class pictures, if the recipe weighs them.
            model: that encodes the photos.
            subjects: what is learned.
            phrases: per subject, what a caption says for it.
        """
        weight = self.recipe.prior_weight
        return [
            Material(
                model.encode(list(subject.photos)),
                TEMPLATES[self.recipe.captions],
                phrase,
                subject.word,
                studio.class_latents(subject.word) if weight else None,
                weight,
            )
            for subject, phrase in zip(subjects, phrases, strict=True)
        ]


def family_of(key: str) -> str:
    """The key of a variant's family."""
    name = key.rpartition("-")[2]
    return key.removesuffix(f"-{name}") if name and name in VARIANTS else key


def _any(things: Sequence[object] | Tensor, generator: Generator) -> int:
    """An index of one of the things, at random."""
    return int(torch.randint(len(things), (), generator=generator))
