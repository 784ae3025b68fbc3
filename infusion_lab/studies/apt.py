"""Study: APT's ladder. A LoRA that is trained long, with one restraint after the other, beside other methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from torch import Tensor

from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.tinyworld import Concept

from ..bench import Bench
from ..methods.apt import Apt, ladder
from ..methods.method import Method
from ..store import Cell, Result
from ..tinyworld import subjects_of
from .blend import BASE, Stage, staged
from .curves import class_latents, drawn_measures, measured_cells

STUDY = "apt"
PLAIN = Apt(rung="plain").key
BESIDE = ("dco-published", "dreambooth-plain", "infusion")  # keys of methods that are shown beside it


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each method and step, and for APT's end under guidance (DreamBlend)."""
    scale, out = bench.scale, list[Cell]()
    steps = tuple(step for step in scale.apt_steps if step <= scale.max_steps)
    if not steps:
        return []
    base_latents = cache(partial(class_latents, bench))
    beside = [method for method in bench.methods if method.key in BESIDE]
    rungs: list[Method] = [*ladder()] if any(m.family == "apt" for m in bench.methods) else []
    for concept in bench.concepts[: scale.apt_concepts]:
        out += measured_cells(bench, STUDY, [*rungs, *beside], concept, steps, base_latents)
        for apt in rungs[-1:]:
            out += _guided_cells(bench, apt, concept, steps, base_latents)
    return out


def _guided_cells(
    bench: Bench, apt: Method, concept: Concept, steps: tuple[int, ...], base_latents: Callable[[Concept], Tensor]
) -> list[Cell]:
    """A cell for the last step under the guidance of the base model, and of the first step."""
    out, subjects = [], subjects_of([concept])
    amounts = bench.amounts("curve_prompts", "curve_seeds", "samples")
    for early in (BASE, *steps[:1]):
        stage = Stage(steps[-1], early, BlendSettings())
        if early == stage.late:
            continue
        sources = [bench.source(apt, subjects, max(steps), step) for step in (stage.late, early) if step]
        compute = partial(_guided, bench, apt, concept, steps, stage, base_latents)
        depends = concept, amounts, stage.settings, early, *sources
        out.append(bench.cell(STUDY, stage.guided_title(apt), concept.name, compute, *depends))
    return out


def _guided(
    bench: Bench, apt: Method, concept: Concept, steps: tuple[int, ...], stage: Stage,
    base_latents: Callable[[Concept], Tensor],
) -> Result:  # fmt: skip
    run = bench.train(apt, subjects_of([concept]), steps)
    customised = staged(bench, apt, run, stage)
    return drawn_measures(bench, STUDY, stage.guided_title(apt), concept, stage.late, customised, base_latents)
