"""What the command ``inspect`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from infusion_core.residual_file import load_concept

from .console import console
from .output import write_report


def run_inspect(path: Path, as_json: bool, out: Path | None = None) -> None:
    """Print what a concept file holds; write it to `out`/report.json too if given.

    Raises:
        InfusionError: the file cannot be read.
    """
    concept = load_concept(path)
    facts: dict[str, Any] = {
        "word": concept.word,
        "base": concept.architecture,
        "layout": concept.layout,
        "prediction": concept.prediction,
        "context_width": concept.context_width,
        "tokens": concept.tokens,
        "bins": concept.bins,
        "parameters": concept.parameter_count,
        "file_bytes": path.stat().st_size,
        "thumbnail": "yes" if concept.thumbnail else "no",
        "attention_maps": "the base model's" if concept.replace_maps else "its own",
        **concept.training,
    }
    norms = {name: float(t.norm(dim=-1).mean()) for name, t in concept.tensors.items()}
    if out:
        write_report(out / "report.json", facts | {"mean_norm": norms})
    if as_json:
        print(json.dumps(facts | {"mean_norm": norms}, indent=2))
        return
    table = Table(title=str(path), show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    console.print(table)
    sizes = Table("place", "shape (bins, tokens, width)", "mean norm")
    for name, tensor in concept.tensors.items():
        sizes.add_row(name, str(tuple(tensor.shape)), f"{norms[name]:.3f}")
    console.print(sizes)
