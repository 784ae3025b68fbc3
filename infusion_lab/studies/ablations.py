"""Study: what each part of Infusion is good for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from infusion_core.embedded.sampling import NEVER, Window
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS, Concept
from infusion_core.trainer import TrainSettings

from ..bench import Bench
from ..measures import ERRORS, bare_pictures, drawn_and_scored, openness
from ..methods.infusion import Infusion, without_maps
from ..store import Cell, Result, Row

STUDY = "ablations"
STRENGTHS = (0.5, 0.75, 1.25, 1.5)
PLAIN = "Infusion"  # the line that all others are held against
NO_MAPS = "no map replacement"
LONG = 1000  # steps, where Infusion has 400
FIRST_HALF = Window(0.0, 0.5)


@dataclass(frozen=True)
class Variant:
    """Infusion with one thing changed: how it is trained, or how it is sampled."""

    name: str
    method: Infusion


def variants() -> list[Variant]:
    """Infusion as it is, then every ablation."""
    plain = Infusion()

    def trained(**changes: Any) -> Infusion:
        return Infusion(replace(TrainSettings(), **changes))

    without = without_maps()
    return [
        Variant(PLAIN, plain),
        Variant(NO_MAPS, without),
        Variant("maps replaced in training only", replace(plain, sampling={"replacement": NEVER})),
        Variant("maps replaced in the first half", replace(plain, sampling={"replacement": FIRST_HALF})),
        Variant(
            "maps not replaced in training, in the first half", replace(without, sampling={"replacement": FIRST_HALF})
        ),
        Variant("own base latent", replace(plain, sampling={"base_latent": "own"})),
        *(Variant(f"layout {layout}", trained(layout=layout)) for layout in ("layer", "value")),
        Variant("4 bins", trained(bins=4)),
        Variant("layout layer, 4 bins", trained(layout="layer", bins=4)),
        Variant(f"{LONG} steps", trained(steps=LONG)),
        Variant(f"{LONG} steps, no map replacement", without_maps(steps=LONG)),
        Variant("paper's settings", trained(learning_rate=0.01, schedule="constant", weighting="uniform")),
        *(Variant(f"strength {s:g}", replace(plain, strength=s)) for s in STRENGTHS),
    ]


def cells(bench: Bench) -> list[Cell]:
    """One cell per variant and concept."""
    out, scale = [], bench.scale
    for concept in (TUNING_CONCEPTS[name] for name in scale.ablation_concepts):
        for variant in variants():
            if variant.method.steps == LONG > scale.max_steps:
                continue  # cut short it would be another variant
            amount = (scale.ablation_prompts, scale.seeds, scale.samples, bench.seed, bench.steps(variant.method))
            compute = partial(_measure, bench, variant, concept)
            out.append(Cell(STUDY, variant.name, concept.name, (amount, variant), compute))
    return out


def _measure(bench: Bench, variant: Variant, concept: Concept) -> Result:
    step = bench.steps(variant.method)
    learned, _ = bench.learned(variant.method, [concept], step)
    customised = variant.method.apply(bench.studio, learned)
    scored = drawn_and_scored(customised, concept, bench.scale.ablation_prompts, bench.seeds, bench.sampling)
    rows = [
        Row(STUDY, variant.name, concept.name, step, s.prompt, s.seed, error, getattr(s.score, error))
        for s in scored
        for error in ERRORS
    ]
    bare = bare_pictures(customised, concept.shape, bench.scale.samples, bench.sampling)
    found = openness(bare, bench.studio.base.encode(bare), concept) | {"bytes": float(len(learned[0].data))}
    rows += [Row(STUDY, variant.name, concept.name, step, "", bench.seed, m, v) for m, v in found.items()]
    return Result(rows, {}, {scored[0].prompt: scored[0].picture})
