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
from .measures import CONCEPT, ERRORS, drawn_and_scored, prompt_error
from .methods.method import Method
from .methods.registry import PUBLISHED, TUNED, Published, subjects_of, tuning, with_recipe
from .store import Cell, Result, Row, means

STUDY = "tune"
MARKS = {"quick": (100, 200, 400), "full": (50, 100, 200, 400, 800, 1600)}
CONCEPTS = {"quick": ("acorn", "crate"), "full": tuple(TUNING_CONCEPTS)}
PROMPTS, SEEDS = {"quick": 6, "full": 8}, 2


def run_tune(out: Path, quick: bool, concepts: Sequence[str], methods: Sequence[str], seed: int, bf16: bool = False
) -> None:  # fmt: skip
    """Try the grid, and write what was chosen beside the code, where the lab reads it.

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
        Cell(STUDY, f"{key} lr {rate:g}", concept.name, (published, mode, seed),
             partial(_measure, bench, published, rate, concept, mode))
        for concept in chosen
        for key, published in PUBLISHED.items()
        if not methods or key in methods
        for rate in published.rates
    ]  # fmt: skip
    rows = []
    with progress("tuning", len(cells)) as advance:
        for cell in cells:
            advance(note=f"{cell.method}, {cell.concept}", steps=0)
            rows += bench.store.result(cell).rows
            advance()
    facts = {"concepts": [c.name for c in chosen], "prompts": PROMPTS[mode], "seeds": SEEDS, "seed": seed}
    _write(choose(rows), facts)
    say(f"Wrote {TUNED}")


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


def _measure(bench: Bench, published: Published, rate: float, concept: Concept, mode: str) -> Result:
    """Errors after every mark of one run."""
    method: Method = with_recipe(published.method, {"learning_rate": rate})
    run = bench.train(method, subjects_of([concept]), MARKS[mode])
    result = Result()
    for step, (learned, _) in run.items():
        customised = method.apply(bench.studio, [learned])
        seeds = range(bench.seed, bench.seed + SEEDS)
        scored = drawn_and_scored(customised, concept, PROMPTS[mode], seeds, bench.sampling)
        name = f"{method.key} lr {rate:g}"
        result.rows += [
            Row(STUDY, name, concept.name, step, s.prompt, s.seed, error, getattr(s.score, error))
            for s in scored
            for error in ERRORS
        ]
    return result


def _write(grid: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    known = tuning()
    fresh = {line["method"] for line in grid}
    kept = [line for line in known["grid"] if line["method"] not in fresh]
    lines = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in ln.items()} for ln in [*kept, *grid]]
    text = json.dumps({**facts, "grid": lines}, indent=1)
    write_atomic(TUNED, (text + "\n").encode())
