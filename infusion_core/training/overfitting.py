"""How overfitted a training is, noise level by noise level (APT, arXiv 2507.02687).

The frozen model is asked about the same noised samples. While there is something to learn both err alike; what the
trained one errs less beyond that is what it knows by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InfusionError

REFERENCE, TRAINED, SEEN = "reference_loss", "trained_loss", "seen"


@dataclass(frozen=True, kw_only=True)
class IndicatorSettings:
    """How the indicator is taken. Bins, rate and temperature are the paper's.

    Attributes:
        bins: parts of the training timesteps, each with an indicator of its own; part 0 has the lowest noise.
        rate: of the moving average, in (0, 1].
        temperature: T; the larger, the sooner a difference of losses counts as overfitting.

    Raises:
        InfusionError: a number is out of range.
    """

    bins: int = 10
    rate: float = 0.1
    temperature: float = 1000.0

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= 1000:
            raise InfusionError(f"the indicator's bins must be 1 to 1000, got {self.bins}")
        if not 0 < self.rate <= 1:
            raise InfusionError(f"the indicator's rate must be above 0 and at most 1, got {self.rate:g}")
        if not 0 < self.temperature < 1e12:
            raise InfusionError(f"the indicator's temperature must be a positive number, got {self.temperature:g}")


class Indicator:
    """``gamma_t = clamp(1 - exp(-T (EMA[L_ref] - EMA[L_theta])), 0, 1)`` per timestep bin.

    A bin that has seen no sample says 0. The first sample of a bin is its average; each later one moves it.

    Args:
        settings: how it is taken.
    """

    def __init__(self, settings: IndicatorSettings) -> None:
        self.settings = settings
        self._reference = torch.zeros(settings.bins, dtype=torch.float64)
        self._trained = torch.zeros(settings.bins, dtype=torch.float64)
        self._seen = torch.zeros(settings.bins, dtype=torch.long)

    @property
    def gamma(self) -> Tensor:
        """Per bin, (bins,), in [0, 1]: 0 where nothing is overfitted."""
        apart = self._reference - self._trained
        return (1 - torch.exp(-self.settings.temperature * apart)).clamp(0, 1).float()

    def bins_of(self, times: Tensor, steps: int) -> Tensor:
        """The bin of each training timestep, (B,), of `steps`."""
        return times * self.settings.bins // steps

    def update(self, bins: Tensor, reference: Tensor, trained: Tensor) -> None:
        """Take in the unweighted losses of samples, in order.

        Args:
            bins: of the samples, (B,).
            reference: of the frozen model, (B,).
            trained: of the one that is trained, (B,).
        """
        pairs = zip(bins.tolist(), reference.detach().tolist(), trained.detach().tolist(), strict=True)
        for bin_, ref, own in pairs:
            rate = self.settings.rate if self._seen[bin_] else 1.0
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
        if any(state[name].shape != (self.settings.bins,) for name in (REFERENCE, TRAINED, SEEN)):
            raise InfusionError("the saved training state has other bins of the overfitting indicator; set the same")
        self._reference, self._trained = state[REFERENCE].clone(), state[TRAINED].clone()
        self._seen = state[SEEN].clone()
