"""Study: Table 1's analogue. Concept fidelity, prompt fidelity, diversity, and what it all costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infusion_core.embedded.tinyworld import Concept
from infusion_core.embedded.tinyworld import evaluate as ev

from ..bench import Bench
from ..measures import ERRORS, bare_pictures, drawn_and_scored, fisher, openness, sampling_cost
from ..methods.method import Customised, Method
from ..store import Cell, Result, Row

STUDY = "fidelity"
BARE, TOLD = "base: class word", "base: look in words"  # the yardsticks, as methods
SHOWN = 3  # pictures kept for the report


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each yardstick and each method."""
    out, scale = [], bench.scale
    amount = (scale.prompts, scale.seeds, scale.samples, scale.fisher_draws, bench.seed)
    for concept in bench.concepts:
        for name in (BARE, TOLD):
            out.append(Cell(STUDY, name, concept.name, amount, partial(_yardstick, bench, name, concept)))
        for method in bench.methods:
            settings = (amount, method.run_settings(bench.steps(method)), bench.steps(method))
            out.append(Cell(STUDY, method.key, concept.name, settings, partial(_method, bench, method, concept)))
    return out


def _yardstick(bench: Bench, name: str, concept: Concept) -> Result:
    """The base model with the bare class word, or with the look in words."""
    base, told = bench.studio.base, name == TOLD
    scenes = ev.unseen_scenes(concept, bench.scale.prompts)
    scored = ev.evaluate(base, concept, scenes, bench.seeds, bench.sampling, describe=told)
    word = f"{concept.look.words} {concept.shape}" if told else concept.shape
    return _result(bench, name, concept, 0, scored, Customised(base, (word,)))


def _method(bench: Bench, method: Method, concept: Concept) -> Result:
    step = bench.steps(method)
    learned, seconds = bench.learned(method, [concept], step)
    customised = method.apply(bench.studio, learned)
    scored = drawn_and_scored(customised, concept, bench.scale.prompts, bench.seeds, bench.sampling)
    result = _result(bench, method.key, concept, step, scored, customised)
    divergence = fisher(
        bench.studio.base, customised, [concept.shape], bench.scale.fisher_prompts, bench.scale.fisher_draws
    )
    result.rows.append(_row(bench, method.key, concept, step, "fisher", divergence.interval.mean))
    result.rows.append(_row(bench, method.key, concept, step, "bytes", float(len(learned[0].data))))
    result.costs = {"training_seconds": seconds}
    if concept.name == bench.scale.concepts[0]:
        cost = sampling_cost(bench.studio.base, customised, concept.shape, bench.sampling)
        result.costs["sampling_ratio"] = cost
    return result


def _result(
    bench: Bench, name: str, concept: Concept, step: int, scored: Sequence[ev.Scored], customised: Customised
) -> Result:
    """Errors of every picture, and what the bare prompt leaves open."""
    rows = [
        Row(STUDY, name, concept.name, step, s.prompt, s.seed, error, getattr(s.score, error))
        for s in scored
        for error in ERRORS
    ]
    bare = bare_pictures(customised, customised.phrases[0], bench.scale.samples, bench.sampling)
    for measure, value in openness(bare, bench.studio.base.encode(bare), concept).items():
        rows.append(_row(bench, name, concept, step, measure, value))
    first = [s for s in scored if s.seed == bench.seeds[0]][:SHOWN]
    return Result(rows, {}, {f"{concept.name}: {s.prompt}"[:200]: s.picture for s in first})


def _row(bench: Bench, name: str, concept: Concept, step: int, measure: str, value: float) -> Row:
    return Row(STUDY, name, concept.name, step, "", bench.seed, measure, value)
