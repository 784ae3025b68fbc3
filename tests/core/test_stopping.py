"""When a run has come to rest and which snapshot is the best, on sequences worked out by hand."""

from __future__ import annotations

import pytest

from infusion_core.errors import InfusionError
from infusion_core.training.stopping import StopRule

BASE = 1.0


def losses(*gains):
    """Validation losses after 10, 20, ... steps of a run with such gains."""
    return [(10 * number, BASE - gain) for number, gain in enumerate(gains, start=1)]


RULE = StopRule(late_gain=0.25, patience=1)
RUNS = [
    ((0.5,), False),  # nothing to compare with
    ((0.5, 0.5), True),
    ((0.3, 0.39), True),  # 0.09 of 0.39
    ((0.3, 0.41), False),  # 0.11 of 0.41
    ((0.3, 0.45, 0.41), False),  # of three, half is one
    ((0.3, 0.45, 0.39), True),
    ((0.1, 0.4, 0.45, 0.53), True),  # of four, half is two
    ((0.1, 0.4, 0.45, 0.54), False),
    ((0.1, 0.4, 0.1, 0.53, 0.52), True),  # of five too
    ((0.5, 0.2), True),  # it has lost some
    ((-0.1, -0.1), False),  # nothing is learned yet
    ((-0.2, 0.001), False),
    ((-0.1, -0.4), False),  # it diverges, which is no rest
    ((), False),
    ((0.0, 0.0), False),
]


@pytest.mark.parametrize(("gains", "rests"), RUNS)
def test_a_run_rests_when_its_second_half_has_brought_little(gains, rests):
    assert RULE.rests(BASE, losses(*gains)) is rests


def test_patience_is_slow_snapshots_one_after_the_other():
    patient = StopRule(late_gain=0.25, patience=3)
    slow, quick = 0.5, 0.9
    assert not patient.rests(BASE, losses(slow, slow))
    assert not patient.rests(BASE, losses(slow, slow, slow))
    assert patient.rests(BASE, losses(slow, slow, slow, slow))  # the second, third and fourth
    assert not patient.rests(BASE, losses(slow, slow, quick, slow))
    assert not patient.rests(BASE, losses(slow, slow, slow, quick))


def test_how_often_snapshots_are_kept_does_not_matter():
    def run(every):
        return [(step, BASE - (1 - 0.5 ** (step / 40))) for step in range(every, 301, every)]

    ends = [next(run(every)[n - 1][0] for n in range(1, 99) if RULE.rests(BASE, run(every)[:n])) for every in (2, 10)]
    assert ends[0] == pytest.approx(ends[1], abs=20)


def test_the_size_of_losses_does_not_matter():
    for scale in (1e-3, 1.0, 50.0):
        for gains, rests in RUNS:
            scaled = [(step, loss * scale) for step, loss in losses(*gains)]
            assert RULE.rests(BASE * scale, scaled) is rests


def test_the_best_snapshot_is_the_first_at_which_the_run_rests():
    gained = losses(0.1, 0.4, 0.45, 0.49, 0.52, 0.9, 0.95)
    assert RULE.best(BASE, gained) == 40  # at 20 and 30 it had more than a quarter to come
    assert StopRule(late_gain=0.25, patience=2).best(BASE, gained) == 50
    assert StopRule(late_gain=0.25, patience=3).best(BASE, gained) is None
    assert RULE.best(BASE, gained[:3]) is None
    assert RULE.best(BASE, []) is None


def test_snapshots_that_come_too_soon_are_passed_over():
    rule, run = StopRule(late_gain=0.25, patience=1, apart=20), losses(0.4, 0.41, 0.42, 0.43, 0.44)
    assert [rule.rests(BASE, run[:count]) for count in range(1, 6)] == [False, False, False, True, False]
    assert rule.best(BASE, run) == 40
    assert rule.best(BASE, run[1::2]) == 40  # as if there were no others
    odd = [(10, 0.6), (25, 0.6), (31, 0.6), (50, 0.6), (69, 0.6)]  # 10 is too near to the start, 31 and 69 to others
    assert [rule.rests(BASE, odd[:count]) for count in range(1, 6)] == [False, False, False, True, False]


@pytest.mark.parametrize(
    "wrong", [{"late_gain": 1.0}, {"late_gain": -0.1}, {"late_gain": float("nan")}, {"patience": 0}, {"apart": 0}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InfusionError, match=f"{next(iter(wrong))} must be"):
        StopRule(**wrong)


@pytest.mark.parametrize(
    ("steps", "every", "apart", "first"),
    [(200, 50, 50, 200), (150, 50, 50, None), (200, 100, 50, None), (800, 250, 50, 800), (300, 100, 100, None),
     (400, 50, 50, 200), (400, 10, 50, 200), (2000, 100, 100, 400)],
)  # fmt: skip
def test_the_earliest_rest_is_after_four_snapshots_that_are_looked_at(steps, every, apart, first):
    """By hand: the first is compared with nothing, then three are slow one after the other."""
    assert StopRule(apart=apart).earliest(steps, every) == first
