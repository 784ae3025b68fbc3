"""95% intervals: over concepts and training seeds, and over prompts of given concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from statistics import fmean, variance
from typing import NamedTuple

import numpy as np
from scipy import stats

from infusion_core.embedded.intervals import mean_interval
from infusion_core.metrics.interval import Interval


class Unit(NamedTuple):
    """What one figure is of: a concept, learned with one training seed."""

    concept: str
    training_seed: int = 0


def interval(found: Mapping[Unit, float]) -> Interval:
    """Mean over concepts and training seeds, and its interval: what other concepts *and* other seeds would give.

    Both are samples, and they are crossed: every concept is learned with every seed. The variance of the mean is then
    (MSc + MSs - MSr) / (C S), the mean squares being of C concepts, of S seeds and of what is left, with
    Satterthwaite's degrees of freedom (F. Satterthwaite, Biometrics Bulletin 2, 1946). Where seeds differ by no more
    than what is left explains (MSs < MSr), that is Student's t over the concepts' means; it is never narrower.

    Args:
        found: values by concept and seed; where some concept lacks a seed, only the seeds that all have count.
    """
    concepts = list(dict.fromkeys(unit.concept for unit in found))
    seeds = [s for s in sorted({u.training_seed for u in found}) if all(Unit(c, s) in found for c in concepts)]
    if not seeds:  # no seed that all concepts have: their means are all there is
        return mean_interval([fmean(v for u, v in found.items() if u.concept == c) for c in concepts])
    table = np.array([[found[Unit(c, s)] for s in seeds] for c in concepts])
    of_concepts, of_seeds = table.mean(1), table.mean(0)
    over_concepts = mean_interval(of_concepts.tolist())
    if min(table.shape) < 2:
        return over_concepts
    count, times = table.shape
    rest = table - of_concepts[:, None] - of_seeds + table.mean()
    freedom = np.array([count - 1, times - 1, (count - 1) * (times - 1)])
    squares = np.array([times * of_concepts.var(ddof=1), count * of_seeds.var(ddof=1), (rest**2).sum() / freedom[2]])
    if squares[1] <= squares[2]:
        return over_concepts
    joined = squares[0] + squares[1] - squares[2]
    half = stats.t.ppf(0.975, joined**2 / (squares**2 / freedom).sum()) * sqrt(joined / table.size)
    half = max(float(half), over_concepts.half)
    return Interval(over_concepts.mean, over_concepts.mean - half, over_concepts.mean + half)


def within_concepts(found: Mapping[str, Mapping[Unit, float]]) -> dict[str, Interval]:
    """Mean and interval per method, with what a concept adds to all methods alike taken out.

    Some concepts are harder than others for every method; that says nothing about how methods differ. Each value is
    therefore taken relative to its concept's mean over methods (D. Cousineau, Tutorials in Quantitative Methods for
    Psychology 1, 2005), and the interval widened by sqrt(M / (M - 1)) for M methods (R. Morey, same journal 4, 2008).

    Args:
        found: value by method, concept and seed; those that a method lacks are left out.
    """
    shared = [c for c in next(iter(found.values()), {}) if all(c in by for by in found.values())]
    if not shared:
        return {}
    level = {c: sum(by[c] for by in found.values()) / len(found) for c in shared}
    middle = sum(level.values()) / len(shared)
    out = {}
    for method, by in found.items():
        span = interval({c: by[c] - level[c] + middle for c in shared})
        half = span.half * (sqrt(len(found) / (len(found) - 1)) if len(found) > 1 else 1.0)
        out[method] = Interval(span.mean, span.mean - half, span.mean + half)
    return out


def plain(found: Mapping[str, Mapping[Unit, float]]) -> dict[str, Interval]:
    """Mean and interval per method of a divergence, whose spread grows with its size; never below 0."""
    spans = {method: interval(by) for method, by in found.items()}
    return {method: replace(span, low=max(span.low, 0.0)) for method, span in spans.items()}


def over_prompts(found: Mapping[str, Mapping[str, float]]) -> Interval:
    """Mean and interval for the given concepts, prompts being the sample: Student's t for a stratified mean.

    It says what other prompts would give, not what other concepts would.

    Args:
        found: value by concept and prompt, at least two prompts each; concepts weigh alike.
    """
    mean = fmean(fmean(by.values()) for by in found.values())
    error = sqrt(sum(variance(by.values()) / len(by) for by in found.values())) / len(found)
    half = float(stats.t.ppf(0.975, sum(len(by) - 1 for by in found.values()))) * error
    return Interval(mean, mean - half, mean + half)
