"""Study: what each part of Infusion and each of its defaults is good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from infusion_core.embedded.evaluate import Scored
from infusion_core.embedded.tinyworld import Concept
from infusion_core.schedule import NEVER
from infusion_core.training.overfitting import OVERFITTING

from ..bench import Bench
from ..measures import (
    CLASS_WORD,
    LOOK_IN_WORDS,
    bare_pictures,
    drawn_and_scored,
    error_rows,
    openness,
    yardstick,
)
from ..methods.infusion import Infusion, small, trained, without_maps
from ..store import Cell, Result, Row

STUDY = "ablations"
STRENGTHS = (0.5, 0.75, 1.25, 1.5)
PLAIN = "Infusion"  # the line that all others are held against
NO_MAPS = "no map replacement"
RESTRAINED = "restrained by its overfitting"
LONG = 1000  # steps


def variants() -> Mapping[str, Infusion]:
    """Infusion as it is, then every ablation, by name."""
    plain = Infusion()
    return {
        PLAIN: plain,
        **_maps(plain),
        "layout block, 1 bin": small(),
        "layout block": trained(layout="block"),
        "layout value": trained(layout="value"),
        "layout parts, 1 bin, lr 0.05": trained(layout="parts", bins=1, learning_rate=0.05),
        "1 bin": trained(bins=1),
        "4 bins": trained(bins=4),
        "up half only": trained(where="up"),
        "lr 0.1": trained(learning_rate=0.1),
        "lr 0.4": trained(learning_rate=0.4),
        "batch 8": trained(batch_size=8),
        "weight decay 0.5": trained(weight_decay=0.5),
        "uniform weighting": trained(weighting="uniform"),
        "independent timesteps": trained(times="uniform"),
        "constant rate": trained(schedule="constant"),
        "one caption": replace(plain, captions="one"),
        "60 steps": trained(steps=60),
        "400 steps": trained(steps=400),
        f"{LONG} steps": trained(steps=LONG),
        f"{LONG} steps, {NO_MAPS}": without_maps(steps=LONG),
        RESTRAINED: trained(restraint=OVERFITTING["restrained"]),
        f"{LONG} steps, {RESTRAINED}": trained(steps=LONG, restraint=OVERFITTING["restrained"]),
        "paper's settings": small().changed(
            steps=400, learning_rate=0.01, schedule="constant", weighting="uniform", replacement_end=1.0
        ),
        **{f"strength {s:g}": replace(plain, strength=s) for s in STRENGTHS},
    }


def _maps(plain: Infusion) -> dict[str, Infusion]:
    """Where the concept stream's attention maps come from, and when."""
    without = without_maps()
    throughout = trained(replacement_end=1.0)
    return {
        NO_MAPS: without,
        "maps replaced throughout": throughout,
        "maps replaced to 0.2": trained(replacement_end=0.2),
        "maps replaced in training only": replace(plain, replacement=NEVER),
        "maps not replaced in training, as by default in drawing": replace(
            without, replacement=plain.settings.map_window
        ),
        "maps replaced throughout, own base latent": replace(throughout, base_latent="own"),
    }


def cells(bench: Bench) -> list[Cell]:
    """Per tuning concept one cell for each yardstick and each variant."""
    out, amounts = [], bench.amounts("ablation_prompts", "seeds", "samples")
    for concept in bench.tuning_concepts:
        out += yardstick_cells(bench, STUDY, concept)
        for name, method in variants().items():
            if bench.scale.max_steps < method.steps != Infusion().steps:
                continue  # cut short it would be another variant
            compute, source = partial(_measure, bench, name, method, concept), bench.own_source(method, [concept])
            out.append(bench.cell(STUDY, name, concept.name, compute, concept, amounts, source))
    return out


def yardstick_cells(bench: Bench, study: str, concept: Concept) -> list[Cell]:
    """The base model with the class word, and with the look in words."""
    amounts, out = bench.amounts("ablation_prompts", "seeds", "samples"), []
    for name in (CLASS_WORD, LOOK_IN_WORDS):
        compute = partial(_yardstick, bench, study, name, concept)
        out.append(bench.cell(study, name, concept.name, compute, concept, amounts))
    return out


def _yardstick(bench: Bench, study: str, name: str, concept: Concept) -> Result:
    prompts = bench.scale.ablation_prompts
    scored = yardstick(bench.studio.base, name, concept, prompts, bench.seeds, bench.sampling)
    return scored_result(study, name, concept, 0, scored)


def _measure(bench: Bench, name: str, method: Infusion, concept: Concept) -> Result:
    learned, _ = bench.learned(method, [concept])
    customised, step = method.apply(bench.studio, learned), bench.steps(method)
    scored = drawn_and_scored(customised, concept, bench.scale.ablation_prompts, bench.seeds, bench.sampling)
    bare = bare_pictures(customised, concept.shape, bench.scale.samples, bench.sampling)
    found = openness(bare, bench.studio.base.encode(bare), concept) | {"bytes": float(len(learned[0].data))}
    result = scored_result(STUDY, name, concept, step, scored)
    result.rows += [Row(STUDY, name, concept.name, step, "", bench.seed, m, v) for m, v in found.items()]
    return result


def scored_result(study: str, name: str, concept: Concept, step: int, scored: list[Scored]) -> Result:
    """Every error of every picture, and one picture."""
    return Result(error_rows(study, name, concept, step, scored), {}, {scored[0].prompt: scored[0].picture})
