"""The command ``infusion lab --model``: every study of real weights, cell by cell, then the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infusion_cli.console import progress

from ..store import Cell
from . import table1
from .page import write
from .setup import RealLab, Request, real_lab

STUDIES: dict[str, Callable[[RealLab], list[Cell]]] = {table1.STUDY: table1.cells}


def run_real(request: Request, methods: Sequence[str] = ()) -> None:
    """Train every method on every subject, draw, score, and write results.csv, report.json and index.html.

    Args:
        request: what was asked for.
        methods: keys of methods; all by default.

    Raises:
        InfusionError: something is missing, or the model has two text encoders.
    """
    lab = real_lab(request, methods)
    cells = [cell for study in STUDIES.values() for cell in study(lab)]
    results = []
    with progress("lab", len(cells)) as advance:
        for cell in cells:
            advance(note=f"{cell.study}: {cell.method}, {cell.concept}", steps=0)
            results.append((cell, lab.bench.store.result(cell)))
            advance()
    write(lab, results)
