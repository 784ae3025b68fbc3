"""The study of stopping: what its table makes of runs worked out by hand, and what its meter measures of a snapshot."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from infusion_core.training.stopping import StopRule
from infusion_lab.bench import FULL, QUICK
from infusion_lab.measures import HEADLINE
from infusion_lab.methods.apt import Apt
from infusion_lab.methods.infusion import Infusion
from infusion_lab.report.stopping_table import ended_runs, stopping_table
from infusion_lab.store import Row
from infusion_lab.studies import stopping


def rows(concept, losses, errors, method="infusion"):
    """Of a run with snapshots after 10, 20, ... steps; the first loss is the base model's."""
    found = [Row("stopping", method, concept, 10 * n, "", 0, stopping.LOSS, loss) for n, loss in enumerate(losses)]
    for n, error in enumerate(errors, start=1):  # two pictures each
        found += [
            Row("stopping", method, concept, 10 * n, "", s, HEADLINE, error + d) for s, d in ((0, 0.1), (1, -0.1))
        ]
    return found


RULE = StopRule(late_gain=0.25, patience=1)
RESTING = rows("acorn", [1.0, 0.6, 0.5, 0.49, 0.48], [0.5, 0.4, 0.42, 0.6])  # at 20: 0.1 of 0.5
RESTLESS = rows("ember", [1.0, 0.9, 0.6, 0.4, 0.3], [0.5, 0.4, 0.3, 0.24])


def test_a_run_ends_where_the_rule_says_or_at_its_last_step():
    ended = ended_runs([*RESTING, *RESTLESS, *rows("kite", [1.0, 0.5], [])], RULE)
    assert ended.keys() == {("infusion", "acorn"), ("infusion", "ember")}
    one, other = ended.values()
    assert (one.step, other.step) == (20, 40)
    assert (one.error, one.best, one.last) == pytest.approx((0.4, 0.4, 0.6))
    assert (one.worse, one.last_worse) == pytest.approx((0.0, 0.5))
    assert other.worse == other.last_worse == 0


def test_the_table_tells_tuning_concepts_from_others():
    told = stopping_table([*RESTING, *RESTLESS], {"infusion": "Infusion"})
    first, second = told.lines
    assert (first[0], second[0]) == ("Infusion, tuning concepts", "Infusion, other concepts")
    assert first[1:3] == ["1", "40"]  # the measured rule is more patient
    assert first[6:] == ["0 of 1", "0 of 1", "+50.0%", "+50.0%"]
    assert second[1:] == ["1", "40", "0.240", "0.240", "0.240", "1 of 1", "1 of 1", "+0.0%", "+0.0%"]
    assert len(told.header) == len(first)


def test_runs_that_are_cut_short_are_no_study():
    assert stopping.cells(SimpleNamespace(scale=QUICK, methods=[Infusion(), Apt()])) == []
    assert max(max(steps) for steps in stopping.runs().values()) <= FULL.max_steps
