"""``infusion lab --tune``: learning rate and steps of every baseline, chosen on the tuning concepts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from infusion_cli.console import progress, say
from infusion_core.atomic import write_atomic
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS, Concept
from infusion_core.errors import InfusionError

from .bench import FULL, QUICK, Bench, bench_for
from .measures import CONCEPT, drawn_and_scored, error_rows, prompt_error
from .methods.baseline import Baseline
from .methods.registry import PUBLISHED, TUNED, tuning
from .store import Cell, Result, Row, means
from .tinyworld import subjects_of

STUDY = "tune"
SNAPSHOT_STEPS = {"quick": (100, 200, 400), "full": (50, 100, 200, 400, 800, 1600)}
CONCEPTS = {"quick": ("acorn", "crate"), "full": tuple(TUNING_CONCEPTS)}
PROMPTS, SEEDS = {"quick": 6, "full": 8}, 2


def run_tune(out: Path, quick: bool, concepts: Sequence[str], methods: Sequence[str], seed: int, bf16: bool = False
) -> None:  # fmt: skip
    """Try the grid, and write what was chosen to ``tuned.json`` in `out`; the lab itself reads its own copy.

    Args:
        out: folder of finished cells.
        quick: two concepts and 400 steps at most, instead of four and 1600.
        concepts: names of tuning concepts; by default as `quick` says.
        methods: keys of baselines; all by default. What is known of the others stays.
        seed: of everything.
        bf16: pictures are drawn in mixed precision.

    Raises:
        InfusionError: an unknown concept or method, or the disk is full.
    """
    mode = "quick" if quick else "full"
    _require(concepts, TUNING_CONCEPTS)
    _require(methods, PUBLISHED)
    chosen = [TUNING_CONCEPTS[name] for name in concepts or CONCEPTS[mode]]
    scale = replace(QUICK if quick else FULL, draw_steps=FULL.draw_steps)
    bench = bench_for(out / f"tune-{mode}", scale, [], seed, bf16)
    cells = [
        _cell(bench, published.method.changed(learning_rate=rate), concept, mode)
        for concept in chosen
        for key, published in PUBLISHED.items()
        if not methods or key in methods
        for rate in published.rates
    ]
    rows = []
    with progress("tuning", len(cells)) as advance:
        for cell in cells:
            advance(note=f"{cell.method}, {cell.concept}", steps=0)
            rows += bench.store.result(cell).rows
            advance()
    facts = {"concepts": [c.name for c in chosen], "prompts": PROMPTS[mode], "seeds": SEEDS, "seed": seed}
    _write(out / TUNED.name, choose(rows), facts)
    say(f"Wrote {out / TUNED.name}")


def choose(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per method, learning rate and step the mean errors and the objective, the best of each method marked.

    The objective weighs all that a picture can have wrong: concept error and `prompt_error`.
    """
    grid: dict[tuple[str, int], dict[str, float]] = {}
    for (run, step, measure), value in means(rows, lambda r: (r.method, r.step, r.measure)).items():
        grid.setdefault((run, step), {})[measure] = value
    lines = []
    for (run, step), errors in grid.items():
        key, rate = run.split(" lr ")
        objective = errors[CONCEPT] + prompt_error(errors)
        lines.append({"method": key, "learning_rate": float(rate), "steps": step, **errors, "objective": objective})
    best = {
        key: min((ln for ln in lines if ln["method"] == key), key=_objective) for key in {ln["method"] for ln in lines}
    }
    return [line | {"chosen": line is best[line["method"]]} for line in lines]


def _objective(line: dict[str, Any]) -> float:
    return float(line["objective"])


def _require(names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise InfusionError(f"nothing called {name!r} is tuned; choose of: {', '.join(known)}")


def _cell(bench: Bench, method: Baseline, concept: Concept, mode: str) -> Cell:
    """Errors of one run at every snapshot."""
    steps, name = SNAPSHOT_STEPS[mode], f"{method.key} lr {method.recipe.learning_rate:g}"
    compute = partial(_measure, bench, method, concept, mode, name)
    source = bench.source(method, subjects_of([concept]), max(steps), max(steps))
    return bench.cell(STUDY, name, concept.name, compute, concept, steps, PROMPTS[mode], SEEDS, source)


def _measure(bench: Bench, method: Baseline, concept: Concept, mode: str, name: str) -> Result:
    run = bench.train(method, subjects_of([concept]), SNAPSHOT_STEPS[mode])
    result = Result()
    for step, (learned, _) in run.items():
        customised = method.apply(bench.studio, [learned])
        scored = drawn_and_scored(customised, concept, PROMPTS[mode], bench.first_seeds(SEEDS), bench.sampling)
        result.rows += error_rows(STUDY, name, concept, step, scored)
    return result


def _write(file: Path, grid: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the grid, with what an earlier run (or else the lab's copy) has of other methods."""
    fresh = {line["method"] for line in grid}
    kept = [line for line in tuning(file if file.exists() else TUNED)["grid"] if line["method"] not in fresh]
    lines = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in ln.items()} for ln in [*kept, *grid]]
    write_atomic(file, (json.dumps({**facts, "grid": lines}, indent=1) + "\n").encode())
