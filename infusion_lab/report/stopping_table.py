"""The table of the study of stopping: where the rule ends runs, and what that costs against the best snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from infusion_core.embedded.tinyworld import TUNING_CONCEPTS
from infusion_core.training.stopping import StopRule

from ..measures import HEADLINE
from ..store import Row, means
from ..studies import stopping
from .tables import Table

NEAR = 0.1  # of the best snapshot's picture error


@dataclass(frozen=True)
class Ended:
    """A run: the step it ended at, and picture errors there, at the best snapshot and at the last step."""

    step: int
    error: float
    best: float
    last: float

    @property
    def worse(self) -> float:
        """By how much the error is over the best snapshot's."""
        return self.error / self.best - 1

    @property
    def last_worse(self) -> float:
        """By how much the last step's is."""
        return self.last / self.best - 1


def ended_runs(rows: Sequence[Row], rule: StopRule | None = None) -> Mapping[tuple[str, str], Ended]:
    """What a rule, by default the measured one, makes of every run that was scored and metered; by method, concept."""
    rule, found = rule or StopRule(), dict[tuple[str, str], Ended]()
    values = means([r for r in rows if r.study == stopping.STUDY], lambda r: (r.method, r.concept, r.measure, r.step))
    for run in dict.fromkeys((r.method, r.concept) for r in rows if r.study == stopping.STUDY):
        errors, losses = ({k[3]: v for k, v in values.items() if k[:3] == (*run, m)} for m in (HEADLINE, stopping.LOSS))
        if errors and losses:
            base, last = losses.pop(0), max(errors)
            step = rule.best(base, sorted(losses.items())) or last
            found[run] = Ended(step, errors[step], min(errors.values()), errors[last])
    return found


def stopping_table(rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    """A line for each method on the tuning concepts and on the others."""
    note = (
        "Runs that go on too long. The rule ends each by its validation loss alone; picture errors of the same prompts "
        "and seeds tell what that was worth. The rule was chosen on the tuning concepts."
    )
    header = (
        "", "concepts", "ended at step", "picture error there", "of the best snapshot", "of the last",
        f"within {NEAR:.0%} of the best", "the last step is", "at worst over the best", "the last step at worst",
    )  # fmt: skip
    runs, lines = ended_runs(rows), []
    for method in dict.fromkeys(method for method, _ in runs):
        for tuning in (True, False):
            chosen = [e for (m, concept), e in runs.items() if m == method and (concept in TUNING_CONCEPTS) == tuning]
            if chosen:
                title = f"{names.get(method, method)}, {'tuning' if tuning else 'other'} concepts"
                lines.append([title, *_cells(chosen)])
    return Table("When to stop", note, header, lines)


def _cells(runs: Sequence[Ended]) -> list[str]:
    count = len(runs)
    return [
        str(count),
        f"{fmean(run.step for run in runs):.0f}",
        *(f"{fmean(getattr(run, name) for run in runs):.3f}" for name in ("error", "best", "last")),
        f"{sum(run.worse <= NEAR for run in runs)} of {count}",
        f"{sum(run.last_worse <= NEAR for run in runs)} of {count}",
        f"{max(run.worse for run in runs):+.1%}",
        f"{max(run.last_worse for run in runs):+.1%}",
    ]
