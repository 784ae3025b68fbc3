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

    @property
    def half(self) -> float:
        """Half of its width above the mean; the ``±`` of a table."""
        return self.high - self.mean


def bootstrap_interval(values: Tensor, group: int | None = None) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), 2000 resamples, always the same ones.

    No quantile of a distribution is needed, the bounds of positive values stay positive, and equal values have an
    interval of no width. With fewer than about 20 values it is somewhat too narrow.

    Args:
        values: finite, (N,), independent; or one from each of N neighbouring strata, in their order.
        group: for strata: values are resampled among so many neighbours (or a few more), so that differences between
            far strata, which every draw covers alike, do not count as uncertainty. None resamples among all.
    """
    values = values.double().cpu()
    count = len(values)
    neighbours = torch.arange(count).tensor_split(max(1, count // (group or count)))
    first = torch.cat([part[:1].expand(len(part)) for part in neighbours])
    size = torch.cat([torch.full((len(part),), len(part)) for part in neighbours])
    generator = torch.Generator().manual_seed(0)
    chosen = first + (torch.rand(RESAMPLES, count, generator=generator) * size).long()
    # Offsets from one of the values, so that the mean of equal values is exact.
    offsets = values - values[0]
    means = values[0] + offsets[chosen].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval((values[0] + offsets.mean()).item(), low, high)
