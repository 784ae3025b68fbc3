"""What the commands `generate` and `inspect` do, apart from reading their options."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw, require_mention
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept
from infusion_core.residuals import ConceptResidual

from .console import console, progress, say
from .output import peak_rss_mb, save_picture, write_report


def run_generate(
    model_name: str,
    concepts: Sequence[str],
    prompt: str,
    count: int,
    out: Path,
    seed: int,
    negative: str = "",
    config: Path | None = None,
    **overrides: Any,
) -> None:
    """Draw pictures into a folder, with a `report.json`.

    Args:
        model_name: base model.
        concepts: ``FILE`` or ``FILE:strength``.
        prompt: names the concepts.
        count: pictures.
        out: folder.
        seed: of the first picture.
        negative: prompt of the unconditional half.
        config: of a base model that is a single file.
        overrides: fields of `SampleSettings`; None leaves the model's own.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started = time.monotonic()
    if count < 1:
        raise InfusionError(f"the count must be at least 1, got {count}")
    loaded = dict(parse_concept(text) for text in concepts)
    if len(loaded) < len(concepts):
        raise InfusionError("two concept files share a name; rename one of them")
    require_mention(prompt, loaded)
    model = load_model(model_name, config=config)
    settings = replace(
        SampleSettings(model.steps, model.guidance), **{k: v for k, v in overrides.items() if v is not None}
    )
    with progress("drawing", settings.steps * -(-count // 8)) as advance:
        pictures = draw(model, prompt, loaded, count, seed, settings, negative, on_step=lambda _: advance())
    for index, picture in enumerate(pictures):
        save_picture(out / f"{seed + index:05d}.png", picture)
    report = {
        "model": model.name,
        "prompt": prompt,
        "concepts": {name: strength for name, (_, strength) in loaded.items()},
        "seed": seed,
        "settings": asdict(settings),
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(out / "report.json", report)
    say(f"Wrote {count} pictures to {out}")


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


def parse_concept(text: str) -> tuple[str, tuple[ConceptResidual, float]]:
    """``FILE`` or ``FILE:strength`` as name, concept and strength.

    Raises:
        InfusionError: the strength is not a number, or the file cannot be read.
    """
    file, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        file, strength = text, "1"
    try:
        scale = float(strength)
    except ValueError:
        raise InfusionError(f"the strength in {text!r} is not a number; write FILE.safetensors:0.8") from None
    path = Path(file)
    return path.stem, (load_concept(path), scale)
