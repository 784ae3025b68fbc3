"""What an objective is: the part of training in which methods differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from .. import noise as noise_levels
from ..noise import Prediction, stratified_times, uniform_times

Learned = TypeVar("Learned", covariant=True)
Weighting = Literal["uniform", "velocity"]
Times = Literal["stratified", "uniform"]
HEAVIEST = 8.0  # most that `velocity` weighs a noise level


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that are trained alike.

    Attributes:
        tensors: by name; names are an objective's own and unique.
        rate: the group's learning rate over the settings'.
        weight_decay: of AdamW; None for the settings'.
    """

    tensors: Mapping[str, Tensor]
    rate: float = 1.0
    weight_decay: float | None = None


class Objective(Protocol[Learned]):
    """What the engine minimises. It draws its own batches, all from the generator it is given."""

    def groups(self) -> Sequence[ParameterGroup]:
        """What is trained; always the same tensors."""
        ...

    def losses(self, generator: Generator) -> Mapping[str, Tensor]:
        """The losses of one fresh batch by name, each per sample (B,); the engine minimises the sum of their means."""
        ...

    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted denoising losses (draws,) on images, noise and levels that are the same at every call."""
        ...

    def after_step(self) -> None:
        """Called after every optimizer step."""
        ...

    def learned(self) -> Learned:
        """What has been learned so far, detached from training."""
        ...

    def extra_state(self) -> Mapping[str, Tensor]:
        """What beside the trained tensors a resumed run needs, by name."""
        ...

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Take an `extra_state` back."""
        ...


@dataclass(frozen=True)
class Noised:
    """Latents at noise levels, and what the network should say of them.

    Attributes:
        latents: ``z + sigma * eps``, (B, C, H, W).
        sigma: noise level of each row, (B,), float32.
        wanted: the noise or v, (B, C, H, W).
    """

    latents: Tensor
    sigma: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, latents: Tensor, times: Tensor, eps: Tensor, sigmas: Tensor, prediction: Prediction) -> Noised:
        """Noise clean latents (B, C, H, W) to training timesteps (B,) with unit noise `eps`."""
        sigma, eps = sigmas[times].to(latents.device), eps.to(latents)
        noised = latents + sigma.to(latents).reshape(-1, 1, 1, 1) * eps
        return cls(noised, sigma, noise_levels.target(prediction, latents, eps, sigma))

    def errors(self, output: Tensor, masks: Tensor | None = None) -> Tensor:
        """Squared error of a network's output per sample, (B,), averaged over the latent.

        Args:
            output: (B, C, H, W).
            masks: weight of the error over the latent, (B, 1, H, W); None for evenly.
        """
        errors = (output.float() - self.wanted.float()).square()
        if masks is not None:
            errors = errors * masks
        return errors.mean(dim=(1, 2, 3))


def loss_weights(weighting: Weighting, sigmas: Tensor) -> Tensor:
    """Weight of the loss at every training timestep (steps,), 1 on average; ``velocity`` is min(1 + sigma^2, 8)."""
    if weighting == "uniform":
        return torch.ones_like(sigmas)
    weights = (1 + sigmas.square()).clamp(max=HEAVIEST)
    return weights / weights.mean()


def timesteps(times: Times, count: int, steps: int, generator: Generator) -> Tensor:
    """Training timesteps (count,), chosen either way."""
    return (stratified_times if times == "stratified" else uniform_times)(count, steps, generator)
