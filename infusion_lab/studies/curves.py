"""Study: divergence, distance, errors and diversity against training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from torch import Tensor

from infusion_core.embedded.evaluate import ERRORS
from infusion_core.embedded.tinyworld import Concept
from infusion_core.metrics.coverage import NEIGHBOURS, coverage
from infusion_core.metrics.wasserstein import latent_wasserstein

from ..bench import Bench
from ..measures import BARE_SEED, bare_pictures, drawn_and_scored, fisher, openness
from ..methods.method import Customised, Method
from ..store import Cell, Result, Row
from ..tinyworld import subjects_of

STUDY = "steps"
FLOOR = "base, other seeds"  # the yardstick of W2: what few samples alone add
SHOWN = 3  # pictures kept for the report


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for the yardstick, and one per method and step."""
    out, scale = [], bench.scale
    steps = tuple(step for step in scale.snapshot_steps if step <= scale.max_steps)
    base_latents = cache(partial(class_latents, bench))
    chosen = bench.concepts[: scale.curve_concepts]
    for concept in chosen:
        compute = partial(_floor, bench, concept, steps, base_latents)
        out.append(bench.cell(STUDY, FLOOR, concept.name, compute, concept, steps, scale.samples))
    for concept in chosen:
        out += measured_cells(bench, STUDY, bench.methods, concept, steps, base_latents)
    return out


def measured_cells(
    bench: Bench, study: str, methods: Sequence[Method], concept: Concept, steps: tuple[int, ...],
    base_latents: Callable[[Concept], Tensor],
) -> list[Cell]:  # fmt: skip
    """A cell for each method and step of a concept; arguments as of `measured`."""
    out, amounts = [], bench.amounts("curve_prompts", "curve_seeds", "samples", "fisher_prompts", "fisher_draws")
    for method in methods:
        for step in steps:
            compute = partial(measured, bench, study, method, concept, steps, step, base_latents)
            source = bench.source(method, subjects_of([concept]), max(steps), step)
            out.append(bench.cell(study, method.key, concept.name, compute, concept, amounts, source))
    return out


def class_latents(bench: Bench, concept: Concept, seed: int = BARE_SEED) -> Tensor:
    """What the base model draws for the bare class word, encoded."""
    base = bench.studio.base
    return base.encode(bare_pictures(Customised(base, ()), concept.shape, bench.scale.samples, bench.sampling, seed))


def _floor(bench: Bench, concept: Concept, steps: tuple[int, ...], base_latents: Callable[[Concept], Tensor]) -> Result:
    """The distance between two sets of the base model's pictures; the true one is 0."""
    other = class_latents(bench, concept, BARE_SEED + bench.scale.samples)
    distance = latent_wasserstein(base_latents(concept), other)
    return Result([Row(STUDY, FLOOR, concept.name, step, "", bench.seed, "w2_class", distance) for step in steps])


def measured(
    bench: Bench, study: str, method: Method, concept: Concept, steps: tuple[int, ...], step: int,
    base_latents: Callable[[Concept], Tensor],
) -> Result:  # fmt: skip
    """Every measure at one step, and a few pictures. The first step asked for trains the whole run.

    Args:
        bench: where.
        study: that the rows belong to.
        method: what is trained.
        concept: on what.
        steps: of the snapshots that are kept.
        step: of the one that is measured.
        base_latents: what the base model draws for the bare class word, encoded.
    """
    # One run holds the recipe's own step too, for the studies that ask for that one alone.
    own = bench.steps(method)
    run = bench.train(method, subjects_of([concept]), {*steps, *([own] if own <= max(steps) else [])})
    customised = method.apply(bench.studio, [run[step][0]])
    result = drawn_measures(bench, study, method.key, concept, step, customised, base_latents)
    scale = bench.scale
    divergence = fisher(bench.studio.base, customised, [concept.shape], scale.fisher_prompts, scale.fisher_draws)
    row = Row(study, method.key, concept.name, step, "", bench.seed, "fisher", divergence.interval.mean)
    return replace(result, rows=[row, *result.rows])


def drawn_measures(
    bench: Bench, study: str, name: str, concept: Concept, step: int, customised: Customised,
    base_latents: Callable[[Concept], Tensor],
) -> Result:  # fmt: skip
    """Every measure of what a customised model draws, and a few pictures; arguments as of `measured`."""
    scale, model = bench.scale, bench.studio.base
    phrase = customised.phrases[0]
    pictures = bare_pictures(customised, phrase, scale.samples, bench.sampling)
    latents = model.encode(pictures)
    of_class = latents
    if phrase != concept.shape:
        of_class = model.encode(bare_pictures(customised, concept.shape, scale.samples, bench.sampling))
    seeds = bench.first_seeds(scale.curve_seeds)
    scored = drawn_and_scored(customised, concept, scale.curve_prompts, seeds, bench.sampling)
    errors = {e: sum(getattr(s.score, e) for s in scored) / len(scored) for e in ERRORS}
    found = {
        "w2_class": latent_wasserstein(base_latents(concept), of_class),
        "w2_concept": latent_wasserstein(base_latents(concept), latents),
        **openness(pictures, latents, concept),
        **errors,
    }
    if scale.samples > NEIGHBOURS:
        kept = coverage(base_latents(concept), of_class)
        found |= {"class_precision": kept.precision, "class_recall": kept.recall}
    rows = [Row(study, name, concept.name, step, "", bench.seed, m, value) for m, value in found.items()]
    shown = {f"{step} steps, bare prompt, {i}": picture for i, picture in enumerate(pictures[:SHOWN], start=1)}
    return Result(rows, {}, shown)
