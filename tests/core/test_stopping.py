"""When a run has come to rest and which snapshot is the best, on sequences worked out by hand."""

from __future__ import annotations

import pytest

from infusion_core.errors import InfusionError
from infusion_core.training.stopping import StopRule

BASE = 1.0


def losses(*gains):
    """Validation losses after 10, 20, ... steps of a run with such gains."""
    return [(10 * number, BASE - gain) for number, gain in enumerate(gains, start=1)]


RULE = StopRule(least_gain=0.1, patience=2, near=0.0)
RUNS = [
    ((0.5,), False),
    ((0.5, 0.5), False),  # too few to compare with
    ((0.5, 0.5, 0.5), True),
    ((0.5, 0.5, 0.55), True),  # 0.05 of 0.55: less than a tenth
    ((0.5, 0.5, 0.56), False),  # 0.06 of 0.56: more
    ((0.5, 0.9, 0.5), True),  # back where it was
    ((0.5, 0.1, 0.6), False),  # of the one between nothing is asked
    ((-0.1, -0.1, -0.1), False),  # nothing is learned yet
    ((-0.1, -0.2, 0.001), False),
    ((0.0, 0.0, 0.0), False),
]


@pytest.mark.parametrize(("gains", "rests"), RUNS)
def test_a_run_rests_when_its_gain_has_hardly_grown(gains, rests):
    assert RULE.rests(BASE, losses(*gains)) is rests


def test_patience_says_how_far_back_is_looked():
    rising = losses(0.5, 0.53, 0.56, 0.59)
    assert StopRule(least_gain=0.1, patience=1).rests(BASE, rising)
    assert not StopRule(least_gain=0.1, patience=2).rests(BASE, rising)  # 0.06 of 0.59
    assert not StopRule(least_gain=0.1, patience=3).rests(BASE, rising)
    assert not StopRule(least_gain=0.1, patience=4).rests(BASE, rising)


def test_the_size_of_losses_does_not_matter():
    for scale in (1e-3, 1.0, 50.0):
        for gains, rests in RUNS:
            scaled = [(step, loss * scale) for step, loss in losses(*gains)]
            assert RULE.rests(BASE * scale, scaled) is rests


def test_the_best_snapshot_has_the_largest_gain_or_is_the_first_near_it():
    gained = losses(0.2, 0.48, 0.5, 0.47, 0.5)
    assert StopRule(near=0.0).best(BASE, gained) == 30
    assert StopRule(near=0.05).best(BASE, gained) == 20
    assert StopRule(near=0.7).best(BASE, gained) == 10
    assert StopRule().best(BASE, losses(-0.2, -0.1, -0.3)) == 30  # none is better than the base model
    assert StopRule().best(BASE, losses(-0.2, 0.1, -0.3)) == 20


@pytest.mark.parametrize("wrong", [{"least_gain": 1.0}, {"near": -0.1}, {"near": float("nan")}, {"patience": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InfusionError, match=f"{next(iter(wrong))} must be"):
        StopRule(**wrong)
