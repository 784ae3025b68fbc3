"""The objective of a LoRA: denoising loss on photos, and on pictures of the class if there are any (DreamBooth)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from ..attention import Plan
from ..denoiser import Denoiser
from ..errors import InfusionError
from ..lora import LoraSet
from ..lora_layers import TEXT, Targets
from .objective import Noised, ParameterGroup, Times, Weighting, loss_weights
from .settings import MOST_AT_ONCE, TrainSettings
from .shown import Drawn, Shown

Own = TypeVar("Own", bound="LoraObjective")


@dataclass(frozen=True, kw_only=True)
class LoraSettings(TrainSettings):
    """How to train a LoRA.

    Attributes:
        batch_size: photos per pass.
        rank: of the matrices.
        alpha: of the whole change; the larger, the stronger. None for the rank.
        targets: layers of the UNet that get matrices: those of ``cross-attention``, of all ``attention``, or of the
            whole ``transformer`` blocks with what leads in and out of them.
        text_rate: learning rate of the text encoders' matrices over the UNet's; 0 leaves text encoders alone.
        prior_weight: of the loss on pictures of the class, of which as many are looked at as of photos.
        weighting, times: see `ResidualSettings`.
    """

    steps: int = 500
    learning_rate: float = 1e-4
    validation_draws: int = 8
    batch_size: int = 4
    rank: int = 8
    alpha: float | None = None
    targets: Targets = "attention"
    text_rate: float = 0.0
    prior_weight: float = 1.0
    weighting: Weighting = "uniform"
    times: Times = "stratified"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(batch_size=MOST_AT_ONCE, rank=MOST_AT_ONCE)
        for name in ("text_rate", "prior_weight"):
            if not 0 <= getattr(self, name) <= MOST_AT_ONCE:
                raise InfusionError(f"{name} must be 0 to {MOST_AT_ONCE}, got {getattr(self, name):g}")
        if self.alpha is not None and not 0 < self.alpha <= MOST_AT_ONCE:
            raise InfusionError(f"alpha must be above 0 and at most {MOST_AT_ONCE}, got {self.alpha:g}")


@dataclass(frozen=True)
class Batch:
    """What one pass looks at.

    Attributes:
        noised: latents at noise levels.
        times: their training timesteps, (B,).
        captions: by number, B.
        masks: see `Shown`; (B, 1, H, W) or None.
    """

    noised: Noised
    times: Tensor
    captions: list[int]
    masks: Tensor | None


class LoraObjective:
    """The denoising loss of a network with a LoRA in it; the LoRA must be installed while this is used.

    Args:
        denoiser: the network.
        lora: what is trained.
        shown: photos of the subject.
        settings: how to train.
        prior: pictures of the class, or None.
    """

    def __init__(
        self, denoiser: Denoiser, lora: LoraSet, shown: Shown, settings: LoraSettings, prior: Shown | None = None
    ) -> None:
        self.denoiser, self.lora, self.shown, self.settings = denoiser, lora, shown, settings
        self.prior = prior if settings.prior_weight else None

    def on(self: Own, shown: Shown) -> Own:
        """The same LoRA, learned from other photos."""
        other = copy(self)
        other.shown = shown
        return other

    def groups(self) -> list[ParameterGroup]:
        """The matrices of the UNet and of the text encoders."""
        text = {name: tensor for name, tensor in self.lora.tensors.items() if name.startswith(TEXT)}
        rest = {name: tensor for name, tensor in self.lora.tensors.items() if name not in text}
        groups = [ParameterGroup(rest), ParameterGroup(text, self.settings.text_rate)]
        return [group for group in groups if group.tensors]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The losses of one batch: ``denoising`` of photos, ``prior`` of pictures of the class."""
        batch = self._drawn(self.shown, generator)
        return {"denoising": self._weighted(self._errors(self.shown, batch), batch), **self._prior_loss(generator)}

    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted losses (draws,), see `Shown.fixed`."""
        parts = self.shown.fixed(draws, self.settings.batch_size, len(self.denoiser.sigmas), seed)
        return torch.cat([self._errors(self.shown, self._batch(self.shown, part)) for part in parts])

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> dict[str, Tensor]:
        """The matrices as learned so far, detached, on the CPU, by the names that a file gives them."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.lora.tensors.items()}

    def off(self) -> AbstractContextManager[None]:
        """The losses are the base model's."""
        return self.lora.off()

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing beside the matrices."""
        return {}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def _prior_loss(self, generator: Generator) -> dict[str, Tensor]:
        if self.prior is None:
            return {}
        batch = self._drawn(self.prior, generator)
        return {"prior": self.settings.prior_weight * self._weighted(self._errors(self.prior, batch), batch)}

    def _drawn(self, shown: Shown, generator: Generator) -> Batch:
        """A random batch."""
        settings, steps = self.settings, len(self.denoiser.sigmas)
        return self._batch(shown, shown.drawn(settings.batch_size, settings.times, steps, generator, self._variants))

    def _variants(self, times: Tensor, count: int, generator: Generator) -> Tensor:
        """Which variant of each picture is shown, see `ChosenVariants`."""
        return torch.zeros(len(times), dtype=torch.long)

    def _batch(self, shown: Shown, drawn: Drawn) -> Batch:
        noised = shown.noised(drawn, self.denoiser.sigmas, self.denoiser.prediction)
        return Batch(noised, drawn.times, drawn.captions.tolist(), shown.weighted(drawn))

    def _errors(self, shown: Shown, batch: Batch, plan: Plan | None = None) -> Tensor:
        """Squared error per sample, (B,)."""
        noised, conditioning = batch.noised, shown.captions(batch.captions)
        output = self.denoiser.predict(noised.latents, noised.sigma, conditioning, plan or Plan())
        return noised.errors(output, batch.masks)

    def _weighted(self, errors: Tensor, batch: Batch) -> Tensor:
        weights = loss_weights(self.settings.weighting, self.denoiser.sigmas)[batch.times]
        return errors * weights.to(errors)
