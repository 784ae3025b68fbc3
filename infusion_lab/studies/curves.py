"""Study: divergence, distance, errors and diversity against training steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from torch import Tensor

from infusion_core.embedded.tinyworld import Concept
from infusion_core.metrics.wasserstein import latent_wasserstein

from ..bench import Bench
from ..measures import BARE_SEED, ERRORS, bare_pictures, drawn_and_scored, fisher, openness
from ..methods.method import Customised, Method
from ..methods.registry import subjects_of
from ..store import Cell, Result, Row

STUDY = "steps"
FLOOR = "base, other seeds"  # the yardstick of W2: what few samples alone add
PROMPTS, SEEDS = 6, 2  # scored pictures at each step, at most
SHOWN = 3  # pictures kept for the report


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for the yardstick, and one per method and step."""
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
            (method.run_settings(max(marks)), step, amount),
            partial(_measure, bench, method, concept, marks, step, base_latents),
        )
        for concept in chosen
        for method in bench.methods
        for step in marks
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
    bench: Bench, method: Method, concept: Concept, marks: tuple[int, ...], step: int,
    base_latents: Callable[[str], Tensor],
) -> Result:  # fmt: skip
    """Every measure at one step, and a few pictures. The first step asked for trains the whole run."""
    # One run holds the recipe's own step too, for the studies that ask for that one alone.
    own = bench.steps(method)
    run = bench.train(method, subjects_of([concept]), sorted({*marks, *([own] if own <= max(marks) else [])}))
    customised = method.apply(bench.studio, [run[step][0]])
    scale, model = bench.scale, bench.studio.base
    divergence = fisher(model, customised, [concept.shape], scale.fisher_prompts, scale.fisher_draws)
    phrase = customised.phrases[0]
    pictures = bare_pictures(customised, phrase, scale.samples, bench.sampling)
    latents = model.encode(pictures)
    of_class = latents
    if phrase != concept.shape:
        of_class = model.encode(bare_pictures(customised, concept.shape, scale.samples, bench.sampling))
    seeds = bench.seeds[:SEEDS]
    scored = drawn_and_scored(customised, concept, min(scale.prompts, PROMPTS), seeds, bench.sampling)
    errors = {e: sum(getattr(s.score, e) for s in scored) / len(scored) for e in ERRORS}
    found = {
        "fisher": divergence.interval.mean,
        "w2_class": latent_wasserstein(base_latents(concept.name), of_class),
        "w2_concept": latent_wasserstein(base_latents(concept.name), latents),
        **openness(pictures, latents, concept),
        **errors,
    }
    rows = [Row(STUDY, method.key, concept.name, step, "", bench.seed, m, value) for m, value in found.items()]
    shown = {f"{step} steps, bare prompt, {i}": picture for i, picture in enumerate(pictures[:SHOWN], start=1)}
    return Result(rows, {}, shown)
