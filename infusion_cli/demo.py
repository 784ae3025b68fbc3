"""The demonstration: learn a TinyWorld concept, draw it where its photos never showed it, score it, show it all."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.atomic import write_atomic
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.evaluate import ERRORS
from infusion_core.embedded.intervals import mean_interval
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tinyworld import CONCEPTS, Concept, training_images
from infusion_core.embedded.tinyworld.world import SIZE
from infusion_core.errors import InfusionError
from infusion_core.training.residual import ResidualSettings

from .alone import alone
from .console import say
from .curves import losses, on_page
from .output import peak_rss_mb, save_picture
from .pages import inline_picture, render_page
from .scoring import SEEDS, Comparison, compare, draw_with
from .train import Trained, TrainRequest, train_alone

TITLES = ("base model", "with the concept", "base model, look in words")  # of a comparison's three parts


def run_demo(out: Path, name: str, settings: ResidualSettings, resume: bool = False) -> None:
    """Write photos, concept.safetensors, report.json, overview.png and index.html to `out`.

    With `resume` an interrupted run goes on.

    Raises:
        InfusionError: unknown concept, another demo is writing there, pictures that are none of ours lie in the way,
            or the disk is full.
    """
    if name not in CONCEPTS:
        raise InfusionError(f"TinyWorld has no concept {name!r}; choose one of: {', '.join(CONCEPTS)}")
    concept = CONCEPTS[name]
    request = TrainRequest(
        "tinyworld", out / "photos", concept.shape, out / "concept.safetensors", settings, resume=resume
    )
    request.check()
    with alone(request.out):
        _learn_and_show(request, name, concept)


def _learn_and_show(request: TrainRequest, name: str, concept: Concept) -> None:
    started, out = time.monotonic(), request.out.parent
    _write_photos(request.images, training_images(concept))
    model = load_model("tinyworld")
    trained = train_alone(request, model, score=False)
    comparison = compare(model, concept, draw_with(model, LoadedConcept(concept.name, trained.concept)))
    report = {**trained.report, **comparison.figures, "concept": name, "seeds": list(SEEDS)}
    report |= {"seconds": time.monotonic() - started, "peak_rss_mb": peak_rss_mb()}
    request.places.write_reports(report)
    save_picture(out / "overview.png", _overview(trained.photos, comparison))
    write_atomic(out / "index.html", _page(concept, trained, comparison, report).encode())
    say(
        f"Concept error {report['base_concept_error']:.3f} -> {report['concept_error']:.3f}: "
        f"{report['gap_closed']:.0%} of the gap to describing the look in words."
    )
    say(f"Open {(out / 'index.html').resolve()}")


def _write_photos(folder: Path, pictures: Sequence[Image.Image]) -> None:
    """Write 0.png, 1.png and so on, in place of those of an earlier demo.

    Raises:
        InfusionError: anything else lies in the folder; it would be learned, or lost.
    """
    before = list(folder.iterdir()) if folder.is_dir() else []
    for path in before:
        if not re.fullmatch(r"\d\d?\.png", path.name):
            raise InfusionError(f"{path} is no picture of the demo's; choose another folder (--out)")
    for path in before:
        path.unlink()
    for index, picture in enumerate(pictures):
        save_picture(folder / f"{index}.png", picture)


def _overview(photos: Sequence[Image.Image], comparison: Comparison) -> Image.Image:
    """A sheet: training pictures on top, then a column per method and a row per prompt, half of the prompts a side."""
    edge, gap = SIZE, 8
    rows = [trio for trio in zip(*comparison, strict=True) if trio[0].seed == SEEDS[0]]
    half = -(-len(rows) // 2)
    width = 2 * len(comparison) * (edge + gap) + 3 * gap
    sheet = Image.new("RGB", (width, (half + 1) * (edge + gap) + 2 * gap), "white")
    left = (width - len(photos) * (edge + gap)) // 2
    for index, photo in enumerate(photos):
        sheet.paste(photo, (left + index * (edge + gap), gap))
    for index, trio in enumerate(rows):
        side, line = divmod(index, half)
        x = gap + side * (len(comparison) * (edge + gap) + gap)
        for column, scored in enumerate(trio):
            sheet.paste(scored.picture, (x + column * (edge + gap), (line + 1) * (edge + gap) + 2 * gap))
    return sheet


def _page(concept: Concept, trained: Trained, comparison: Comparison, report: dict[str, Any]) -> str:
    """The self-contained page."""
    rows = [
        {
            "prompt": trio[1].prompt,
            "seed": trio[1].seed,
            "cells": [
                {"image": inline_picture(s.picture), "error": s.score.concept_error, "title": title}
                for s, title in zip(trio, TITLES, strict=True)
            ],
        }
        for trio in zip(*comparison, strict=True)
    ]
    scores = [
        {
            "name": title,
            "cells": [mean_interval([getattr(s.score, m) for s in scored]) for m in ERRORS],
        }
        for title, scored in zip(TITLES, comparison, strict=True)
    ]
    return render_page(
        "demo.html.j2",
        concept=concept,
        photos=[inline_picture(p) for p in trained.photos],
        rows=rows,
        scores=scores,
        count=len(comparison.learned),
        measures=[m.replace("_", " ") + (" (px)" if m == "position_error" else "") for m in ERRORS],
        report=report,
        curve=on_page(losses, trained.record),
    )
