"""Study: Table 1's analogue. Concept fidelity, prompt fidelity, diversity, and what it all costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from infusion_core.embedded.evaluate import Scored
from infusion_core.embedded.tinyworld import CONCEPTS, Concept

from ..bench import Bench
from ..measures import (
    CLASS_WORD,
    LOOK_IN_WORDS,
    bare_pictures,
    drawn_and_scored,
    error_rows,
    fisher,
    openness,
    sampling_cost,
    yardstick,
)
from ..methods.method import Customised, Method
from ..store import Cell, Result, Row

STUDY = "fidelity"
TIMED = next(iter(CONCEPTS))  # the concept that sampling is timed with
SHOWN = 3  # pictures kept for the report


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each yardstick, and one for each method and training seed.

    Pictures are drawn from the same seeds whatever drew them.
    """
    out, drawn = [], bench.amounts("prompts", "seeds", "samples")
    amounts = drawn | bench.amounts("fisher_prompts", "fisher_draws")
    for concept in bench.concepts:
        for name in (CLASS_WORD, LOOK_IN_WORDS):
            compute = partial(_yardstick, bench, name, concept)
            out.append(bench.cell(STUDY, name, concept.name, compute, concept, drawn))
        for method in bench.methods:
            for seed in bench.training_seeds:
                source = bench.own_source(method, [concept], seed)
                compute = partial(_method, bench, method, concept, seed)
                out.append(bench.cell(STUDY, method.key, concept.name, compute, concept, amounts, source))
    return out


def _yardstick(bench: Bench, name: str, concept: Concept) -> Result:
    """The base model with the bare class word, or with the look in words."""
    base = bench.studio.base
    scored = yardstick(base, name, concept, bench.scale.prompts, bench.seeds, bench.sampling)
    word = f"{concept.look.words} {concept.shape}" if name == LOOK_IN_WORDS else concept.shape
    return _result(bench, name, concept, 0, scored, Customised(base, (word,)))


def _method(bench: Bench, method: Method, concept: Concept, seed: int) -> Result:
    step = bench.steps(method)
    learned, seconds = bench.learned(method, [concept], seed)
    customised = method.apply(bench.studio, learned)
    scored = drawn_and_scored(customised, concept, bench.scale.prompts, bench.seeds, bench.sampling)
    result = _result(bench, method.key, concept, step, scored, customised)
    divergence = fisher(
        bench.studio.base, customised, [concept.shape], bench.scale.fisher_prompts, bench.scale.fisher_draws
    )
    result.rows.append(_row(bench, method.key, concept, step, "fisher", divergence.interval.mean))
    result.rows.append(_row(bench, method.key, concept, step, "bytes", float(len(learned[0].data))))
    result.rows = [replace(row, training_seed=seed) for row in result.rows]
    result.costs = {"training_seconds": seconds}
    if seed != bench.training_seeds[0]:
        result.pictures = {}  # the report shows one training's
    elif concept.name == TIMED:
        cost = sampling_cost(bench.studio.base, customised, concept.shape, bench.sampling)
        result.costs["sampling_ratio"] = cost
    return result


def _result(
    bench: Bench, name: str, concept: Concept, step: int, scored: Sequence[Scored], customised: Customised
) -> Result:
    """Errors of every picture, and what the bare prompt leaves open."""
    rows = error_rows(STUDY, name, concept, step, scored)
    bare = bare_pictures(customised, customised.phrases[0], bench.scale.samples, bench.sampling)
    for measure, value in openness(bare, bench.studio.base.encode(bare), concept).items():
        rows.append(_row(bench, name, concept, step, measure, value))
    first = [s for s in scored if s.seed == bench.seeds[0]][:SHOWN]
    return Result(rows, {}, {f"{concept.name}: {s.prompt}"[:200]: s.picture for s in first})


def _row(bench: Bench, name: str, concept: Concept, step: int, measure: str, value: float) -> Row:
    return Row(STUDY, name, concept.name, step, "", bench.seed, measure, value)
