"""A mean with its 95% interval by Student's t; the core, which has no scipy, resamples instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..metrics.interval import Interval


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its interval; of one value alone it has no width."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, mean, mean)
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)
