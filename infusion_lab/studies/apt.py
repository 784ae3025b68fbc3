"""Study: APT's ladder. A LoRA that is trained long, with one restraint after the other, beside other methods."""

from __future__ import annotations

from functools import cache, partial

from ..bench import Bench
from ..methods.apt import ladder
from ..methods.method import Method
from ..store import Cell
from ..tinyworld import subjects_of
from .curves import class_latents, measured

STUDY = "apt"
BESIDE = ("dco-published", "dreambooth-plain", "infusion")  # keys of methods that are shown beside it


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each method and step."""
    scale, out = bench.scale, []
    steps = tuple(step for step in scale.apt_steps if step <= scale.max_steps)
    base_latents = cache(partial(class_latents, bench))
    amounts = bench.amounts("curve_prompts", "curve_seeds", "samples", "fisher_prompts", "fisher_draws")
    beside = [method for method in bench.methods if method.key in BESIDE]
    rungs: list[Method] = [*ladder()] if any(m.family == "apt" for m in bench.methods) else []
    for concept in bench.concepts[: scale.apt_concepts]:
        for method in [*rungs, *beside]:
            for step in steps:
                compute = partial(measured, bench, STUDY, method, concept, steps, step, base_latents)
                source = bench.source(method, subjects_of([concept]), max(steps), step)
                out.append(bench.cell(STUDY, method.key, concept.name, compute, concept, amounts, source))
    return out
