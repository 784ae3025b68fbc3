"""What the command ``grid`` does: snapshots of a run side by side, as one picture."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.adapters import read_lora, with_lora
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.residual_file import is_concept_file, load_concept
from infusion_core.snapshot_files import snapshots_in
from infusion_core.snapshot_grid import GridPlan

from .console import progress, say
from .generate import sampling_of
from .output import check_out, peak_rss_mb, save_picture, write_report
from .places import Places

Artist = tuple[EmbeddedModel, list[LoadedConcept]]  # what draws


@dataclass(frozen=True)
class GridRequest:
    """What `infusion grid` was asked for.

    Attributes:
        model: base model.
        snapshots: folder of a run's snapshots, or what the run wrote beside it; or any concept or LoRA file.
        plan: strengths and prompts.
        out: folder.
        steps: of the snapshots that are shown; none for all.
        seed: of every picture.
        config: of a base model that is a single file.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    model: str
    snapshots: Path
    plan: GridPlan
    out: Path
    steps: tuple[int, ...]
    seed: int
    config: Path | None
    sampling: Mapping[str, Any]

    def files(self) -> list[tuple[str, Path]]:
        """Label and file of each snapshot.

        Raises:
            InfusionError: there is none.
        """
        path = self.snapshots
        folder = path if path.is_dir() else Places(path).snapshots
        if folder.is_dir():
            return [(f"step {step}", file) for step, file in snapshots_in(folder, self.steps)]
        if not path.is_file():
            raise InfusionError(f"{path} is neither a folder of snapshots nor a file; give one of them")
        if self.steps:
            raise InfusionError(f"{path} has no snapshots beside it, so there is no step to choose; leave --step out")
        return [(path.stem, path)]


def run_grid(request: GridRequest) -> Image.Image:
    """Draw every snapshot, at every strength, for every prompt; write grid.png and report.json.

    Returns:
        the grid.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started, files = time.monotonic(), request.files()
    cells = request.plan.cells(len(files))
    check_out(request.out)
    model = load_model(request.model, config=request.config)
    settings = sampling_of(model, request.sampling)
    with progress("drawing snapshots", cells) as advance:

        def drawn(artist: Artist, prompt: str) -> Image.Image:
            drawing, concepts = artist
            (picture,) = draw(drawing, prompt, concepts, 1, request.seed, settings)
            advance()
            return picture

        grid = request.plan.drawn(files, partial(_loaded, model), drawn)
    save_picture(request.out / "grid.png", grid)
    report = {
        "model": model.name,
        "snapshots": [str(file) for _, file in files],
        **asdict(request.plan),
        "seed": request.seed,
        "settings": asdict(settings),
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(request.out / "report.json", report)
    say(f"Open {(request.out / 'grid.png').resolve()}")
    return grid


def _loaded(model: EmbeddedModel, file: Path, strength: float) -> Artist:
    """The base model with a concept, which at strength 0 is the base model; or a model with a LoRA in it."""
    if is_concept_file(file):
        return model, [LoadedConcept(file.stem, load_concept(file), strength)]
    return with_lora(model, read_lora(file), file.name, strength), []
