"""The paper's claims, each held against the measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infusion_core.embedded.intervals import mean_interval
from infusion_core.metrics.interval import Interval

from ..measures import CONCEPT, PROMPT
from ..store import Row
from ..studies import ablations, curves, fidelity
from .intervals import over_prompts
from .tables import BASES, Figures, errors_by_prompt, figures, together, with_trade

REPRODUCED, REFUTED, OPEN = "reproduced", "refuted", "undecided"
OURS = ("infusion", "infusion-plain")  # with and without map replacement; no baselines
APART = 3  # baselines that Infusion's intervals must be clear of
TUNERS = ("dreambooth", "dreambooth-plain", "lora", "custom-diffusion")  # baselines that change the network
BASELINES = (*TUNERS, "textual-inversion", "perfusion")


@dataclass(frozen=True)
class Verdict:
    """A claim, what it is held against if it compares, what became of it, and the figures that say so."""

    claim: str
    against: str
    verdict: str
    figures: str


def verdicts(rows: Sequence[Row], names: Mapping[str, str]) -> list[Verdict]:
    """Every claim the rows can speak to."""
    table1 = with_trade(figures(rows, fidelity.STUDY))
    steps = sorted({r.step for r in rows if r.study == curves.STUDY})
    last = steps[-1] if steps else 0
    late, after = figures(rows, curves.STUDY, last), f"After {last} steps "
    pairs = together(rows, 2)
    parts = figures(rows, ablations.STUDY)
    ours, plain = OURS

    def over(
        claim: str, found: Figures, measure: str, baselines: Sequence[str], less: bool = True, method: str = ours
    ) -> list[Verdict | None]:
        told = claim.format(names.get(method, method))
        return [_compare(told, names.get(b, b), found, measure, (method, b), less) for b in baselines]

    found: list[Verdict | None] = [_unchanged(late or table1), _on_the_front(rows, names)]
    found += over(after + "{} repeats the photos' layout less than", late, "layout_repeated", TUNERS)
    found += over(after + "{} moves its super-class less (2-Wasserstein) than", late, "w2_class", TUNERS)
    for method in OURS:
        found += over("{} draws the concept better than", table1, "gap_closed", BASELINES, less=False, method=method)
    found += over("{} obeys the prompt better than", table1, PROMPT, BASELINES)
    found += over("Two concepts leak less into each other with {} than with", pairs, "leaked", BASELINES)
    for measure, good in ((CONCEPT, "helps the concept's fidelity"), ("layout_repeated", "keeps the layout free")):
        claim = f"Replacing maps {good}, against not replacing them"
        found += [
            _compare(claim, "tuning concepts", parts, measure, (ablations.PLAIN, ablations.NO_MAPS)),
            _compare(claim, "the other concepts", table1, measure, (ours, plain)),
            _compare(claim, f"curves, {last} steps", late, measure, (ours, plain)),
        ]
    return [v for v in found if v]


def _unchanged(found: Figures) -> Verdict | None:
    values = found.get(("infusion", "fisher"))
    if not values:
        return None
    worst = max(values.values())
    text = f"largest Fisher divergence {worst:g}"
    return Verdict("Other prompts stay exactly what they were", "", REPRODUCED if worst == 0 else REFUTED, text)


def _on_the_front(rows: Sequence[Row], names: Mapping[str, str]) -> Verdict | None:
    """No baseline beats Infusion in both errors, and at least `APART` are beaten in one by intervals apart.

    The intervals are over prompts, for the concepts of the run.
    """
    found = errors_by_prompt(rows, fidelity.STUDY)
    learned = found.get(("infusion", CONCEPT), {}).keys()
    spans = {
        (method, error): over_prompts(by)
        for (method, error), by in found.items()
        if method not in BASES and by.keys() == learned and min(len(values) for values in by.values()) > 1
    }
    methods = list(dict.fromkeys(method for method, _ in spans))
    if "infusion" not in methods or not {*methods} - {*OURS}:
        return None
    better, apart = [], []
    for other in methods:
        if other in OURS:
            continue
        if all(spans[other, e].mean <= spans["infusion", e].mean for e in (CONCEPT, PROMPT)):
            better.append(names.get(other, other))
        won = [e for e in (CONCEPT, PROMPT) if spans["infusion", e].high < spans[other, e].low]
        if won:
            apart.append(f"{names.get(other, other)} ({' and '.join(e.replace('_', ' ') for e in won)})")
    verdict = REFUTED if better else REPRODUCED if len(apart) >= APART else OPEN
    ours = ", ".join(f"{e.replace('_', ' ')} {_told(spans['infusion', e], '.3f')}" for e in (CONCEPT, PROMPT))
    text = f"{ours}; better in both: {', '.join(better) or 'none'}; worse, apart: {', '.join(apart) or 'none'}"
    claim = (
        f"On these concepts Infusion is on the Pareto front of concept and prompt error, clear of at least {APART} "
        "baselines (intervals over prompts)"
    )
    return Verdict(claim, "", verdict, text)


def _compare(
    claim: str, against: str, found: Figures, measure: str, pair: tuple[str, str], less: bool = True
) -> Verdict | None:
    """Is the first of the pair lower (or higher)? Paired over concepts; undecided where the interval holds 0."""
    ours, theirs = (found.get((name, measure), {}) for name in pair)
    shared = [c for c in ours if c in theirs]
    if not shared:
        return None
    sign = 1 if less else -1
    more = mean_interval([sign * (theirs[c] - ours[c]) for c in shared])
    sided = len(shared) > 1 and not more.low <= 0 <= more.high
    verdict = OPEN if not sided else REPRODUCED if more.mean > 0 else REFUTED
    text = (
        f"{measure.replace('_', ' ')}: {sum(ours[c] for c in shared) / len(shared):.3g} against "
        f"{sum(theirs[c] for c in shared) / len(shared):.3g}, advantage {_told(more, '.3g')}"
    )
    return Verdict(claim, against, verdict, text)


def _told(span: Interval, form: str) -> str:
    """``mean (low to high)``."""
    return f"{span.mean:{form}} ({span.low:{form}} to {span.high:{form}})"
