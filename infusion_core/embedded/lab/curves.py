"""Study: divergence, distance, errors and diversity against training steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from torch import Tensor

from ...metrics.wasserstein import latent_wasserstein
from ..tinyworld import Concept
from .bench import Bench
from .measures import BARE_SEED, ERRORS, bare_pictures, drawn_and_scored, fisher, openness
from .method import Customised, Method
from .methods import subjects_of
from .store import Cell, Result, Row

STUDY = "steps"
FLOOR = "base, other seeds"  # the yardstick of W2: what few samples alone add
PROMPTS, SEEDS = 6, 2  # scored pictures at each step, at most


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for the yardstick and each method."""
    scale = bench.scale
    marks = tuple(m for m in scale.marks if m <= scale.max_steps)
    base_latents = lru_cache(maxsize=None)(partial(_base_latents, bench))
    amount = (scale.prompts, scale.seeds, scale.samples, scale.fisher_prompts, scale.fisher_draws, bench.seed)
    chosen = bench.concepts[: scale.curve_concepts]
    floors = [
        Cell(STUDY, FLOOR, c.name, (scale.samples, marks, bench.seed), partial(_floor, bench, c, marks, base_latents))
        for c in chosen
    ]
    return floors + [
        Cell(
            STUDY,
            method.key,
            concept.name,
            (method.run_settings(max(marks)), marks, amount),
            partial(_measure, bench, method, concept, marks, base_latents),
        )
        for concept in chosen
        for method in bench.methods
    ]


def _base_latents(bench: Bench, name: str, seed: int = BARE_SEED) -> Tensor:
    """What the base model draws for the bare class word, encoded."""
    base = bench.studio.base
    (concept,) = (c for c in bench.concepts if c.name == name)
    return base.encode(bare_pictures(Customised(base, ()), concept.shape, bench.scale.samples, bench.sampling, seed))


def _floor(bench: Bench, concept: Concept, marks: tuple[int, ...], base_latents: Callable[[str], Tensor]) -> Result:
    """The distance between two draws of the base model; the true one is 0."""
    other = _base_latents(bench, concept.name, BARE_SEED + bench.scale.samples)
    distance = latent_wasserstein(base_latents(concept.name), other)
    return Result([Row(STUDY, FLOOR, concept.name, step, "", bench.seed, "w2_class", distance) for step in marks])


def _measure(
    bench: Bench, method: Method, concept: Concept, marks: tuple[int, ...], base_latents: Callable[[str], Tensor]
) -> Result:
    # One run holds the recipe's own step too, for the studies that ask for that one alone.
    own = bench.steps(method)
    run = bench.train(method, subjects_of([concept]), sorted({*marks, *([own] if own <= max(marks) else [])}))
    result, base = Result(), base_latents(concept.name)
    for step in marks:
        customised = method.apply(bench.studio, [run[step][0]])
        for measure, value in _at(bench, customised, concept, base, result, step).items():
            result.rows.append(Row(STUDY, method.key, concept.name, step, "", bench.seed, measure, value))
    return result


def _at(
    bench: Bench, customised: Customised, concept: Concept, base: Tensor, result: Result, step: int
) -> dict[str, float]:
    """Every measure at one step; a few pictures go into the result."""
    scale, model = bench.scale, bench.studio.base
    divergence = fisher(model, customised, [concept.shape], scale.fisher_prompts, scale.fisher_draws)
    phrase = customised.phrases[0]
    pictures = bare_pictures(customised, phrase, scale.samples, bench.sampling)
    latents = model.encode(pictures)
    of_class = latents
    if phrase != concept.shape:
        of_class = model.encode(bare_pictures(customised, concept.shape, scale.samples, bench.sampling))
    for index, picture in enumerate(pictures[:3]):
        result.pictures[f"{step} steps, bare prompt, {index + 1}"] = picture
    seeds = bench.seeds[:SEEDS]
    scored = drawn_and_scored(customised, concept, min(scale.prompts, PROMPTS), seeds, bench.sampling)
    errors = {e: sum(getattr(s.score, e) for s in scored) / len(scored) for e in ERRORS}
    return {
        "fisher": divergence.interval.mean,
        "w2_class": latent_wasserstein(base, of_class),
        "w2_concept": latent_wasserstein(base, latents),
        **openness(pictures, latents, concept),
        **errors,
    }
