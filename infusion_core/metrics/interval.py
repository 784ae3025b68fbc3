"""A mean with its 95% interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95% interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), 2000 resamples, always the same ones.

    No quantile of a distribution is needed, the bounds of positive values stay positive, and equal values have an
    interval of no width. With fewer than about 20 values it is somewhat too narrow.

    Args:
        values: independent, finite, (N,).
    """
    values = values.double().cpu()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    # Offsets from one of the values, so that the mean of equal values is exact.
    means = values[0] + (values - values[0])[chosen].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval((values[0] + (values - values[0]).mean()).item(), low, high)
