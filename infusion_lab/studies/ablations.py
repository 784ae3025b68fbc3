"""Study: what each part of Infusion is good for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from infusion_core.embedded.tinyworld import Concept
from infusion_core.schedule import NEVER, Window

from ..bench import Bench
from ..measures import bare_pictures, drawn_and_scored, error_rows, openness
from ..methods.infusion import Infusion, trained, without_maps
from ..store import Cell, Result, Row
from .variants import Variant

STUDY = "ablations"
STRENGTHS = (0.5, 0.75, 1.25, 1.5)
PLAIN = "Infusion"  # the line that all others are held against
NO_MAPS = "no map replacement"
LONG = 1000  # steps, where Infusion has 400
FIRST_HALF = Window(0.0, 0.5)


def variants() -> list[Variant]:
    """Infusion as it is, then every ablation."""
    plain, without = Infusion(), without_maps()
    return [
        Variant(PLAIN, plain),
        Variant(NO_MAPS, without),
        Variant("maps replaced in training only", replace(plain, replacement=NEVER)),
        Variant("maps replaced in the first half", replace(plain, replacement=FIRST_HALF)),
        Variant("maps not replaced in training, in the first half", replace(without, replacement=FIRST_HALF)),
        Variant("own base latent", replace(plain, base_latent="own")),
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
    out, amounts = [], bench.amounts("ablation_prompts", "seeds", "samples")
    for concept in bench.tuning_concepts:
        for variant in variants():
            if variant.method.steps == LONG > bench.scale.max_steps:
                continue  # cut short it would be another variant
            compute, source = partial(_measure, bench, variant, concept), bench.own_source(variant.method, [concept])
            out.append(bench.cell(STUDY, variant.name, concept.name, compute, concept, amounts, source))
    return out


def _measure(bench: Bench, variant: Variant, concept: Concept) -> Result:
    learned, _ = bench.learned(variant.method, [concept])
    customised, step = variant.method.apply(bench.studio, learned), bench.steps(variant.method)
    scored = drawn_and_scored(customised, concept, bench.scale.ablation_prompts, bench.seeds, bench.sampling)
    bare = bare_pictures(customised, concept.shape, bench.scale.samples, bench.sampling)
    found = openness(bare, bench.studio.base.encode(bare), concept) | {"bytes": float(len(learned[0].data))}
    rows = error_rows(STUDY, variant.name, concept, step, scored)
    rows += [Row(STUDY, variant.name, concept.name, step, "", bench.seed, m, v) for m, v in found.items()]
    return Result(rows, {}, {scored[0].prompt: scored[0].picture})
