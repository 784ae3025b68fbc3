"""What the command ``inspect`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infusion_core.residual_file import load_concept
from infusion_core.schedule import ALWAYS, NEVER, Window

from .console import say_facts, say_json, say_table
from .output import write_report


def run_inspect(path: Path, as_json: bool, out: Path | None = None) -> None:
    """Print what a concept file holds; write it to `out`/report.json too if given.

    What is known of the residuals and what the file tells of its training are kept apart.

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
        "parts": concept.parts,
        "parameters": concept.parameter_count,
        "file_bytes": path.stat().st_size,
        "thumbnail": "yes" if concept.thumbnail else "no",
        "attention_maps": _maps(concept.map_window),
    }
    norms = {name: float(t.norm(dim=-1).mean()) for name, t in concept.tensors.items()}
    report = facts | {"training": dict(concept.training), "mean_norm": norms}
    if out:
        write_report(out / "report.json", report)
    if as_json:
        say_json(report)
        return
    say_facts(str(path), facts)
    if concept.training:
        say_facts("what the file says of its training", concept.training)
    sizes = [(name, str(tuple(t.shape)), f"{norms[name]:.3f}") for name, t in concept.tensors.items()]
    say_table("residuals", ("place", "bins, tokens, width", "mean norm"), sizes)


def _maps(window: Window) -> str:
    """Whose attention maps a concept was trained with."""
    if window == NEVER:
        return "its own"
    return "the base model's" if window == ALWAYS else f"the base model's until {window.end:g} of a run, then its own"
