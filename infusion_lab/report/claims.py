"""The paper's claims, each held against the measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infusion_core.dreamblend import BlendSettings
from infusion_core.metrics.interval import Interval

from ..measures import CONCEPT, HEADLINE, PROMPT
from ..methods.baseline import family_of
from ..store import Row
from ..studies import ablations, blend, curves, fidelity
from .intervals import interval, over_prompts
from .tables import BASES, Figures, errors_by_prompt, figures, together, with_trade

REPRODUCED, REFUTED, OPEN = "reproduced", "refuted", "undecided"
OURS = ("infusion", "infusion-small", "infusion-plain")  # no baselines
GUIDED = ", guided"  # in the title of a stage that is
NEAR, MOST_NEAR = 0.05, 5 / 6  # what the advisor chooses is so near the best, on so many of the concepts
APART = 3  # baselines that Infusion's intervals must be clear of
TUNERS = ("dreambooth", "dreambooth-plain", "lora", "dco", "custom-diffusion")  # baselines that change the network
BASELINES = (*TUNERS, "textual-inversion", "perfusion")


@dataclass(frozen=True)
class Verdict:
    """A claim, what it is held against if it compares, what became of it, and the figures that say so."""

    claim: str
    against: str
    verdict: str
    figures: str


def verdicts(rows: Sequence[Row], names: Mapping[str, str]) -> list[Verdict]:
    """Every claim the rows can speak to.

    Of each baseline, the strongest of its recipes is compared: for claims about likeness the one with the least
    concept error, for all others the one with the least picture error, both as measured in the study of fidelity.
    """
    table1 = with_trade(figures(rows, fidelity.STUDY))
    steps = sorted({r.step for r in rows if r.study == curves.STUDY})
    last = steps[-1] if steps else 0
    late, after = figures(rows, curves.STUDY, last), f"After {last} steps "
    pairs = together(rows, 2)
    parts = figures(rows, ablations.STUDY)
    ours, _, plain = OURS

    def over(
        claim: str, found: Figures, measure: str, baselines: Sequence[str], less: bool = True, method: str = ours
    ) -> list[Verdict | None]:
        told, by = claim.format(names.get(method, method)), CONCEPT if measure == "gap_closed" else HEADLINE
        strongest = [s for b in baselines if (s := _strongest(b, found, measure, table1, by, less))]
        return [_compare(told, names.get(b, b), found, measure, (method, b), less) for b in strongest]

    found: list[Verdict | None] = [_unchanged(late, table1), _on_the_front(rows, names)]
    found += over(after + "{} repeats the photos' layout less than", late, "layout_repeated", TUNERS)
    found += over(after + "{} moves its super-class less (2-Wasserstein) than", late, "w2_class", TUNERS)
    for method in OURS:
        found += over("{} draws the concept better than", table1, "gap_closed", BASELINES, less=False, method=method)
    found += over("{} has less wrong with a picture, likeness and prompt together, than", table1, HEADLINE, BASELINES)
    found += over("{} obeys the prompt better than", table1, PROMPT, BASELINES)
    found += over("Two concepts leak less into each other with {} than with", pairs, "leaked", BASELINES)
    for measure, good in ((CONCEPT, "helps the concept's fidelity"), ("layout_repeated", "keeps the layout free")):
        claim = f"Replacing maps {good}, against not replacing them"
        found += [
            _compare(claim, "tuning concepts", parts, measure, (ablations.PLAIN, ablations.NO_MAPS)),
            _compare(claim, "the other concepts", table1, measure, (ours, plain)),
            _compare(claim, f"curves, {last} steps", late, measure, (ours, plain)),
        ]
    return [v for v in [*found, *_blended(rows), *_advised(rows)] if v]


def _blended(rows: Sequence[Row]) -> list[Verdict | None]:
    """Guidance against the best single snapshot of the same run: that of the defaults by the base model, and the best.

    The best guidance is the best of many on the very concepts it is judged by, which flatters it; so is the snapshot.
    """
    found, out = figures(rows, blend.STUDY), list[Verdict | None]()
    titles = list(dict.fromkeys(method for method, measure in found if measure == HEADLINE))
    for run in dict.fromkeys(title.rpartition(GUIDED)[0] or title for title in titles):
        name = run.rpartition(", ")[0]
        alone = [t for t in titles if t.startswith(f"{name}, ") and GUIDED not in t and not t.endswith(blend.ADVISED)]
        if not alone:
            continue
        best = min(alone, key=lambda title: interval(found[title, HEADLINE]).mean)
        guided = [t for t in titles if t.startswith(f"{run}{GUIDED}")]
        plain = [t for t in guided if t.endswith(f"by base, alpha {BlendSettings().alpha:g}")]
        if not guided or not plain:
            continue
        top = min(guided, key=lambda title: interval(found[title, HEADLINE]).mean)
        for one, claim in ((plain[0], "Guided by the base model"), (top, f"Guided in the best way ({top})")):
            claim += f" {run} has less wrong with a picture than the best snapshot alone"
            out.append(_compare(claim, best, found, HEADLINE, (one, best)))
    return out


def _advised(rows: Sequence[Row]) -> list[Verdict]:
    """The advisor's choice against the best that the same run's grid holds, concept by concept."""
    found, out = figures(rows, blend.STUDY), list[Verdict]()
    titles = list(dict.fromkeys(method for method, measure in found if measure == HEADLINE))
    for advised in (title for title in titles if title.endswith(blend.ADVISED)):
        name = advised.removesuffix(blend.ADVISED)
        grid = [title for title in titles if title.startswith(f"{name}, ") and title != advised]
        errors = found[advised, HEADLINE]
        all_of_it = [found[title, HEADLINE] for title in grid]
        whole = [unit for unit in errors if grid and all(unit in by for by in all_of_it)]
        if not whole:
            continue
        more = {unit: errors[unit] / min(by[unit] for by in all_of_it) - 1 for unit in whole}
        near = sum(value <= NEAR for value in more.values())
        claim = f"What the advisor chooses of {name} is within {NEAR:.0%} of the best of the grid"
        text = f"{near} of {len(more)} concepts; picture error more than the best's: " + ", ".join(
            f"{unit.concept} {value:+.0%}" for unit, value in more.items()
        )
        enough = near >= MOST_NEAR * len(more)
        out.append(Verdict(claim, "", REPRODUCED if enough else REFUTED, text))
    return out


def _strongest(family: str, found: Figures, measure: str, judged: Figures, by: str, less: bool) -> str | None:
    """Of the recipes of a family that have a measure, the best by an error; None if there is none.

    Where the error is not known of all of them, the one that is best in the measure itself.
    """
    recipes = [method for method, of in found if of == measure and family_of(method) == family]
    if all((method, by) in judged for method in recipes):
        return min(recipes, key=lambda method: interval(judged[method, by]).mean, default=None)
    return min(recipes, key=lambda method: (1 if less else -1) * interval(found[method, measure]).mean)


def _unchanged(*found: Figures) -> Verdict | None:
    values = [value for of in found for value in of.get(("infusion", "fisher"), {}).values()]
    if not values:
        return None
    worst = max(values)
    text = f"largest Fisher divergence {worst:g}"
    return Verdict("Other prompts stay exactly what they were", "", REPRODUCED if worst == 0 else REFUTED, text)


def _on_the_front(rows: Sequence[Row], names: Mapping[str, str]) -> Verdict | None:
    """No baseline beats Infusion in both errors, and at least `APART` are beaten in one by intervals apart.

    Each recipe of a baseline counts: one that is better in both refutes the claim, and a baseline is beaten if all of
    its recipes are. The intervals are over prompts, for the concepts of the run.
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
    better, apart, level = [], [], set()  # methods, methods with what they are beaten in, families not beaten
    for other in methods:
        if other in OURS:
            continue
        if all(spans[other, e].mean <= spans["infusion", e].mean for e in (CONCEPT, PROMPT)):
            better.append(names.get(other, other))
        won = [e for e in (CONCEPT, PROMPT) if spans["infusion", e].high < spans[other, e].low]
        if won:
            apart.append(f"{names.get(other, other)} ({' and '.join(e.replace('_', ' ') for e in won)})")
        else:
            level.add(family_of(other))
    beaten = {family_of(method) for method in methods if method not in OURS} - level
    verdict = REFUTED if better else REPRODUCED if len(beaten) >= APART else OPEN
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
    """Is the first of the pair lower (or higher)? Paired over concepts and training seeds; undecided where the interval
    holds 0 or there is one concept."""
    ours, theirs = (found.get((name, measure), {}) for name in pair)
    shared = [c for c in ours if c in theirs]
    if not shared:
        return None
    sign = 1 if less else -1
    more = interval({unit: sign * (theirs[unit] - ours[unit]) for unit in shared})
    sided = len({unit.concept for unit in shared}) > 1 and not more.low <= 0 <= more.high
    verdict = OPEN if not sided else REPRODUCED if more.mean > 0 else REFUTED
    text = (
        f"{measure.replace('_', ' ')}: {interval({unit: ours[unit] for unit in shared}).mean:.3g} against "
        f"{interval({unit: theirs[unit] for unit in shared}).mean:.3g}, advantage {_told(more, '.3g')}"
    )
    return Verdict(claim, against, verdict, text)


def _told(span: Interval, form: str) -> str:
    """``mean (low to high)``."""
    return f"{span.mean:{form}} ({span.low:{form}} to {span.high:{form}})"
