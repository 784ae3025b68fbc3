"""How overfitted a training is, noise level by noise level, and what follows from it (APT, arXiv 2507.02687).

The frozen model is asked about the same noised samples. While there is something to learn both err alike; what the
trained one errs less beyond that is what it knows by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from ..errors import InfusionError
from .augmentation import PUBLISHED, Augmentation, chosen_variants

TEMPERATURE = 1000.0  # the paper's
REFERENCE, TRAINED, SEEN = "reference_loss", "trained_loss", "seen"


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """How overfitting is measured, and what follows. Bins and rate are the paper's.

    Attributes:
        measure: take the indicator even where nothing follows from it.
        augment: show variants of the photos, with the chance that the indicator gives.
        most_augmented: largest chance.
        reweight: weigh the denoising loss with 1 - gamma.
        bins: parts of the training timesteps, each with an indicator of its own; part 0 has the lowest noise.
        rate: of the moving average, in (0, 1].
        temperature: T; the larger, the sooner a difference of losses counts as overfitting. It belongs to the size of a
            model's losses; None for the model's own, the paper's 1000 for Stable Diffusion.
        augmentation: how variants differ from their photos; None for the model's own, the paper's for Stable Diffusion.

    Raises:
        InfusionError: a number is out of range.
    """

    measure: bool = False
    augment: bool = False
    most_augmented: float = 0.8
    reweight: bool = False
    bins: int = 10
    rate: float = 0.1
    temperature: float | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.most_augmented <= 1:
            raise InfusionError(f"most_augmented must be 0 to 1, got {self.most_augmented:g}")
        if not 1 <= self.bins <= 1000:
            raise InfusionError(f"the indicator's bins must be 1 to 1000, got {self.bins}")
        if not 0 < self.rate <= 1:
            raise InfusionError(f"the indicator's rate must be above 0 and at most 1, got {self.rate:g}")
        if self.temperature is not None and not 0 < self.temperature < 1e12:
            raise InfusionError(f"the indicator's temperature must be a positive number, got {self.temperature:g}")

    @property
    def measures(self) -> bool:
        """Whether the frozen model is asked."""
        return self.measure or self.augment or self.reweight

    def on(self, temperature: float, augmentation: Augmentation = PUBLISHED) -> Restraint:
        """The same, with a model's own temperature and augmentation where none were chosen."""
        own = augmentation if self.augmentation is None else self.augmentation
        return replace(
            self, temperature=temperature if self.temperature is None else self.temperature, augmentation=own
        )


UNRESTRAINED, MEASURED = Restraint(), Restraint(measure=True)
RESTRAINED = Restraint(measure=True, augment=True, reweight=True)
Overfitting = Literal["ignored", "measured", "restrained"]
OVERFITTING: Mapping[Overfitting, Restraint] = {  # as users choose
    "ignored": UNRESTRAINED,
    "measured": MEASURED,
    "restrained": RESTRAINED,
}


def checked_level(level: float, taken: bool) -> float:
    """A level of the indicator at which training ends.

    Args:
        level: 0 for never.
        taken: the indicator is.

    Raises:
        InfusionError: it is out of range, or can never be reached.
    """
    if not 0 <= level <= 1:
        raise InfusionError(f"stop_at must be 0 (never) to 1, got {level:g}")
    if level and not taken:
        raise InfusionError(
            "stop_at needs to know how overfitted the run is, which is not measured; set overfitting to measured (APT: "
            "restrain on), or leave stop_at at 0"
        )
    return level


class Indicator:
    """``gamma_t = clamp(1 - exp(-T (EMA[L_ref] - EMA[L_theta])), 0, 1)`` per timestep bin.

    A bin that has seen no sample says 0. The first sample of a bin is its average; each later one moves it. A batch is
    augmented and weighed by what is said before it.

    Args:
        restraint: how it is taken, and what follows.
        steps: training timesteps of the model.
    """

    def __init__(self, restraint: Restraint, steps: int) -> None:
        self.restraint, self._steps = restraint, steps
        self._reference = torch.zeros(restraint.bins, dtype=torch.float64)
        self._trained = torch.zeros(restraint.bins, dtype=torch.float64)
        self._seen = torch.zeros(restraint.bins, dtype=torch.long)

    @property
    def gamma(self) -> Tensor:
        """Per bin, (bins,), in [0, 1]: 0 where nothing is overfitted."""
        apart = self._reference - self._trained
        return (1 - torch.exp(-(self.restraint.temperature or TEMPERATURE) * apart)).clamp(0, 1).float()

    @property
    def overall(self) -> float:
        """Mean over the bins."""
        return self.gamma.mean().item()

    def reached(self, level: float) -> bool:
        """Whether it is so far that training should end; never at level 0."""
        return level > 0 and self.overall >= level

    def at(self, times: Tensor) -> Tensor:
        """Gamma at training timesteps, (B,)."""
        return self.gamma[self._bins(times)]

    def variants(self, times: Tensor, count: int, generator: Generator) -> Tensor:
        """Which variant of its photo each sample shows, (B,), 0 being the photo itself; there are `count` others."""
        if not self.restraint.augment:
            return torch.zeros(len(times), dtype=torch.long)
        return chosen_variants(self.at(times).clamp(0, self.restraint.most_augmented), count, generator)

    def weights(self, times: Tensor) -> Tensor:
        """Weights of the denoising loss, (B,)."""
        return 1 - self.at(times) if self.restraint.reweight else torch.ones(len(times))

    def update(self, times: Tensor, reference: Tensor, trained: Tensor) -> None:
        """Take in the unweighted losses of samples, in order.

        Args:
            times: their training timesteps, (B,).
            reference: of the frozen model, (B,).
            trained: of the one that is trained, (B,).
        """
        pairs = zip(self._bins(times).tolist(), reference.detach().tolist(), trained.detach().tolist(), strict=True)
        for bin_, ref, own in pairs:
            rate = self.restraint.rate if self._seen[bin_] else 1.0
            self._reference[bin_] += rate * (ref - self._reference[bin_])
            self._trained[bin_] += rate * (own - self._trained[bin_])
            self._seen[bin_] += 1

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return {REFERENCE: self._reference.clone(), TRAINED: self._trained.clone(), SEEN: self._seen.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a `state` back.

        Raises:
            InfusionError: it is of another number of bins.
        """
        if any(name not in state or state[name].shape != self._seen.shape for name in (REFERENCE, TRAINED, SEEN)):
            raise InfusionError("the saved training state has other bins of the overfitting indicator; set the same")
        self._reference, self._trained = state[REFERENCE].clone(), state[TRAINED].clone()
        self._seen = state[SEEN].clone()

    def _bins(self, times: Tensor) -> Tensor:
        return times * self.restraint.bins // self._steps
