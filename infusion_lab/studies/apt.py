"""Study: APT's ladder. A LoRA that is trained long, with one restraint after the other, beside other methods."""

from __future__ import annotations

from functools import cache, partial

from ..bench import Bench
from ..methods.apt import ladder
from ..methods.method import Method
from ..store import Cell
from .curves import class_latents, measured_cells

STUDY = "apt"
BESIDE = ("dco-published", "dreambooth-plain", "infusion")  # keys of methods that are shown beside it


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each method and step."""
    scale, out = bench.scale, list[Cell]()
    steps = tuple(step for step in scale.apt_steps if step <= scale.max_steps)
    base_latents = cache(partial(class_latents, bench))
    beside = [method for method in bench.methods if method.key in BESIDE]
    rungs: list[Method] = [*ladder()] if any(m.family == "apt" for m in bench.methods) else []
    for concept in bench.concepts[: scale.apt_concepts]:
        out += measured_cells(bench, STUDY, [*rungs, *beside], concept, steps, base_latents)
    return out
