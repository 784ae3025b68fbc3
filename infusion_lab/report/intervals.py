"""95% intervals: over concepts that every method has learned, and over prompts of given concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from statistics import fmean, variance

from scipy import stats

from infusion_core.embedded.intervals import mean_interval
from infusion_core.metrics.interval import Interval


def within_concepts(found: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    """Mean and interval per method, with what a concept adds to all methods alike taken out.

    Some concepts are harder than others for every method; that says nothing about how methods differ. Each value is
    therefore taken relative to its concept's mean over methods (D. Cousineau, Tutorials in Quantitative Methods for
    Psychology 1, 2005), and the interval widened by sqrt(M / (M - 1)) for M methods (R. Morey, same journal 4, 2008).

    Args:
        found: value by method and concept; concepts that a method lacks are left out.
    """
    shared = [c for c in next(iter(found.values()), {}) if all(c in by for by in found.values())]
    if not shared:
        return {}
    level = {c: sum(by[c] for by in found.values()) / len(found) for c in shared}
    middle = sum(level.values()) / len(shared)
    out = {}
    for method, by in found.items():
        span = mean_interval([by[c] - level[c] + middle for c in shared])
        half = span.half * (sqrt(len(found) / (len(found) - 1)) if len(found) > 1 else 1.0)
        out[method] = Interval(span.mean, span.mean - half, span.mean + half)
    return out


def plain(found: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    """Mean and interval per method of a divergence, whose spread grows with its size; never below 0."""
    spans = {method: mean_interval(list(by.values())) for method, by in found.items()}
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
