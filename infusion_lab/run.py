"""The command ``infusion lab``: every study, cell by cell, then the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from infusion_cli.console import progress
from infusion_core.embedded.tinyworld import CONCEPTS, TUNING_CONCEPTS
from infusion_core.errors import InfusionError

from .bench import FULL, QUICK, Bench, Scale, bench_for
from .methods.registry import all_methods
from .report.page import write
from .store import Cell
from .studies import ablations, apt, blend, curves, fidelity, restraints, several, stopping, toy

STUDIES: dict[str, Callable[[Bench], list[Cell]]] = {
    curves.STUDY: curves.cells,  # first: its long runs hold snapshots that the others use
    fidelity.STUDY: fidelity.cells,
    several.STUDY: several.cells,
    blend.STUDY: blend.cells,
    apt.STUDY: apt.cells,
    restraints.STUDY: restraints.cells,
    ablations.STUDY: ablations.cells,
    stopping.STUDY: stopping.cells,
    toy.STUDY: toy.cells,
}


def run_lab(
    out: Path, quick: bool = False, only: Sequence[str] = (), methods: Sequence[str] = (),
    concepts: Sequence[str] = (), most_steps: int = 0, seed: int = 0, bf16: bool = False,
    finished: bool = False,
) -> None:  # fmt: skip
    """Run the studies and write the report; finished cells are taken from `out`.

    Args:
        out: folder.
        quick: a small run, under ten minutes on two cores, instead of hours.
        only: studies; all by default.
        methods: keys of methods, or of families: all recipes of one method; all by default.
        concepts: names of concepts; all of the mode's by default.
        most_steps: no training is longer; 0 for the mode's own limit.
        seed: of everything.
        bf16: pictures are drawn in mixed precision.
        finished: compute nothing; the report is of the cells that are there.

    Raises:
        InfusionError: an unknown study, method or concept, or the disk is full.
    """
    studies = studies_for(only)
    scale = _of_concepts(QUICK if quick else FULL, concepts)
    scale = replace(scale, max_steps=min(scale.max_steps, most_steps or scale.max_steps))
    every = all_methods(scale.max_steps)
    keys = chosen_of(methods, list(dict.fromkeys(k for m in every for k in (m.family, m.key))), "method")
    mode = "quick" if quick else "full"
    bench = bench_for(out / mode, scale, [m for m in every if m.key in keys or m.family in keys], seed, bf16)
    run(bench, studies, out, mode, finished)


def studies_for(only: Sequence[str]) -> list[Callable[[Bench], list[Cell]]]:
    """The studies that are named, or all, in the order they are run in.

    Raises:
        InfusionError: an unknown study.
    """
    chosen = chosen_of(only, list(STUDIES), "study")
    return [STUDIES[name] for name in STUDIES if name in chosen]


def run(
    bench: Bench, studies: Sequence[Callable[[Bench], list[Cell]]], out: Path, mode: str, finished: bool = False
) -> None:
    """Compute what is missing (unless `finished`), then write the report to `out`.

    Raises:
        InfusionError: `finished`, and nothing is; or the disk is full.
    """
    started = time.monotonic()
    every = [cell for study in studies for cell in study(bench)]
    if not every:
        raise InfusionError(
            "there is nothing to compute: these studies have no part for what was chosen; choose other methods, "
            "concepts or studies, or allow more steps (docs/lab.md)"
        )
    cells = [cell for cell in every if bench.store.has(cell) or not finished]
    if not cells:
        raise InfusionError(f"nothing is finished in {bench.store.folder}; leave --finished out")
    results = []
    with progress("lab", len(cells)) as advance:
        for cell in cells:
            advance(note=f"{cell.study}: {cell.method}, {cell.concept}", steps=0)
            results.append((cell, bench.store.result(cell)))
            advance()
    write(out, bench, results, time.monotonic() - started, mode)


def _of_concepts(scale: Scale, names: Sequence[str]) -> Scale:
    """The scale with these concepts only, all of them in every study that takes such, and the groups they fill."""
    if not names:
        return scale
    chosen_of(names, [*CONCEPTS, *TUNING_CONCEPTS], "concept")
    chosen, tuning = (tuple(name for name in names if name in known) for known in (CONCEPTS, TUNING_CONCEPTS))
    groups, count = tuple(g for g in scale.groups if {*g} <= {*chosen}), len(chosen)
    return replace(
        scale, concepts=chosen, ablation_concepts=tuning, groups=groups,
        curve_concepts=count, blend_concepts=count, apt_concepts=count,
    )  # fmt: skip


def chosen_of(asked: Sequence[str], known: Sequence[str], what: str) -> Sequence[str]:
    """What was asked for, or all that is known.

    Raises:
        InfusionError: something that is not known.
    """
    for name in asked:
        if name not in known:
            raise InfusionError(f"the lab has no {what} {name!r}; choose of: {', '.join(known)}")
    return asked or known
