"""The command ``infusion lab --model``: every study of real weights, cell by cell, then the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infusion_cli.console import progress
from infusion_core.errors import InfusionError

from ..run import chosen_of
from ..store import Cell
from . import drift, several, table1
from .page import write
from .setup import RealLab, Request, real_lab

STUDIES: dict[str, Callable[[RealLab], list[Cell]]] = {
    table1.STUDY: table1.cells,
    drift.STUDY: drift.cells,
    several.STUDY: several.cells,
}


def run_real(request: Request, methods: Sequence[str] = ()) -> None:
    """Train every method on every subject, draw, score, and write results.csv, report.json and index.html.

    Args:
        request: what was asked for.
        methods: keys of methods; all by default.

    Raises:
        InfusionError: something is missing or unknown, or the model has two text encoders.
    """
    studies = chosen_of(request.only, list(STUDIES), "study of real weights")
    lab = real_lab(request, methods)
    cells = [cell for name in STUDIES if name in studies for cell in STUDIES[name](lab)]
    if not cells:
        raise InfusionError("there is nothing to measure; --only drift needs --pictures, --only several needs --pairs")
    results = []
    with progress("lab", len(cells)) as advance:
        for cell in cells:
            advance(note=f"{cell.study}: {cell.method}, {cell.concept}", steps=0)
            results.append((cell, lab.bench.store.result(cell)))
            advance()
    write(lab, results)
