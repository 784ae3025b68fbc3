"""Study: what each of APT's restraints is good for, and at which weight; on the tuning concepts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from infusion_core.embedded.tinyworld import Concept
from infusion_core.training.overfitting import UNRESTRAINED

from ..bench import Bench
from ..measures import bare_pictures, drawn_and_scored, fisher, openness
from ..methods.apt import Apt
from ..store import Cell, Result, Row
from .ablations import scored_result, yardstick_cells

STUDY = "restraints"
STEPS = 1000  # long enough for a plain LoRA to know the photos by heart
WEIGHTS = (0.1, 1.0)  # of stabilisation and of alignment
PLAIN = "LoRA, unrestrained"


def variants() -> Mapping[str, Apt]:
    """A plain LoRA, adaptive training, and either loss beside it at every weight; last, APT as it is."""
    apt = Apt().changed(steps=STEPS)
    off = {"stabilisation": 0.0, "alignment": 0.0}
    return {
        PLAIN: apt.changed(restraint=UNRESTRAINED, **off),
        "adaptive": apt.changed(**off),
        **{f"adaptive, stabilisation {w:g}": apt.changed(**{**off, "stabilisation": w}) for w in WEIGHTS},
        **{f"adaptive, alignment {w:g}": apt.changed(**{**off, "alignment": w}) for w in WEIGHTS},
        "APT": apt,
    }


def cells(bench: Bench) -> list[Cell]:
    """Per tuning concept one cell for each yardstick and each variant."""
    out, amounts = [], bench.amounts("ablation_prompts", "seeds", "samples", "fisher_prompts", "fisher_draws")
    if bench.scale.max_steps < STEPS:
        return []  # cut short it would tell nothing about overfitting
    for concept in bench.tuning_concepts:
        out += yardstick_cells(bench, STUDY, concept)
        for name, method in variants().items():
            compute, source = partial(_measure, bench, name, method, concept), bench.own_source(method, [concept])
            out.append(bench.cell(STUDY, name, concept.name, compute, concept, amounts, source))
    return out


def _measure(bench: Bench, name: str, method: Apt, concept: Concept) -> Result:
    learned, _ = bench.learned(method, [concept])
    customised, scale = method.apply(bench.studio, learned), bench.scale
    scored = drawn_and_scored(customised, concept, scale.ablation_prompts, bench.seeds, bench.sampling)
    bare = bare_pictures(customised, customised.phrases[0], scale.samples, bench.sampling)
    base = bench.studio.base
    moved = fisher(base, customised, [concept.shape], scale.fisher_prompts, scale.fisher_draws)
    found = openness(bare, base.encode(bare), concept) | {"fisher": moved.interval.mean}
    result = scored_result(STUDY, name, concept, STEPS, scored)
    result.rows += [Row(STUDY, name, concept.name, STEPS, "", bench.seed, m, v) for m, v in found.items()]
    return result
