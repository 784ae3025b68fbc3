"""Two studies that run when asked for alone: where the residual lives and what its maps and base latent are, and how
the settings of training were chosen (docs/tinyworld-study.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from infusion_core.embedded.tinyworld import Concept
from infusion_core.residuals import LAYOUTS

from ..bench import Bench
from ..measures import CLASS_WORD, LOOK_IN_WORDS, drawn_and_scored, error_rows, yardstick
from ..methods.infusion import trained, without_maps
from ..store import Cell, Result
from .variants import Variant

STUDY, SETTINGS = "layouts", "settings"
PAPER = {"learning_rate": 0.01, "schedule": "constant", "weighting": "uniform"}
FIRST = {STUDY: "block, shared", SETTINGS: "paper: lr .01, constant, uniform"}  # what the others are held against


def cells(bench: Bench) -> list[Cell]:
    """Every layout with the base stream's latent shared and its own, and without map replacement."""
    return _cells(bench, STUDY, layouts(), bench.concepts, ("layout_prompts", "layout_seeds"))


def setting_cells(bench: Bench) -> list[Cell]:
    """Settings of training on the tuning concepts, from the paper's to the project's."""
    return _cells(bench, SETTINGS, settings(), bench.tuning_concepts, ("setting_prompts", "setting_seeds"))


def layouts() -> list[Variant]:
    """The first study's."""
    return [
        Variant(f"{layout}, {name}", method)
        for layout in LAYOUTS
        for name, method in {
            "shared": trained(layout=layout),
            "own": replace(trained(layout=layout), base_latent="own"),
            "no map replacement": without_maps(layout=layout),
        }.items()
    ]


def settings() -> list[Variant]:
    """The second study's."""
    fast: dict[str, Any] = PAPER | {"learning_rate": 0.02, "schedule": "cosine"}
    tuned = fast | {"weighting": "velocity"}
    faster = tuned | {"learning_rate": 0.05}
    return [
        Variant(FIRST[SETTINGS], trained(**PAPER)),
        Variant("lr .02, cosine", trained(**fast)),
        Variant("lr .02, cosine, velocity", trained(**tuned)),
        Variant("lr .05, cosine, velocity", trained(**faster)),
        Variant("lr .02, cosine, velocity, value", trained(**tuned, layout="value")),
        Variant("lr .05, cosine, velocity, value", trained(**faster, layout="value")),
    ]


def _cells(
    bench: Bench, study: str, variants: Sequence[Variant], concepts: Sequence[Concept], amounts: tuple[str, str]
) -> list[Cell]:
    """Per concept one cell for each yardstick and each variant."""
    out, told = [], bench.amounts(*amounts)
    prompts, seeds = told[amounts[0]], bench.first_seeds(told[amounts[1]])
    for concept in concepts:
        for name in (CLASS_WORD, LOOK_IN_WORDS):
            compute = partial(_yardstick, bench, study, name, concept, prompts, seeds)
            out.append(bench.cell(study, name, concept.name, compute, concept, told))
        for variant in variants:
            compute = partial(_measure, bench, study, variant, concept, prompts, seeds)
            source = bench.own_source(variant.method, [concept])
            out.append(bench.cell(study, variant.name, concept.name, compute, concept, told, source))
    return out


def _yardstick(bench: Bench, study: str, name: str, concept: Concept, prompts: int, seeds: range) -> Result:
    scored = yardstick(bench.studio.base, name, concept, prompts, seeds, bench.sampling)
    return Result(error_rows(study, name, concept, 0, scored), {}, {scored[0].prompt: scored[0].picture})


def _measure(bench: Bench, study: str, variant: Variant, concept: Concept, prompts: int, seeds: range) -> Result:
    learned, _ = bench.learned(variant.method, [concept])
    customised = variant.method.apply(bench.studio, learned)
    scored = drawn_and_scored(customised, concept, prompts, seeds, bench.sampling)
    rows = error_rows(study, variant.name, concept, bench.steps(variant.method), scored)
    return Result(rows, {}, {scored[0].prompt: scored[0].picture})
