"""Snapshot Grid: snapshots of a training run side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
from comfy_api.latest import io
from PIL import Image

from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.residual_file import is_concept_file, load_concept
from ..infusion_core.snapshot_files import snapshots_in
from ..infusion_core.snapshot_grid import GridPlan
from . import library, snapshots
from .host.candidates import Candidates
from .host.compat import ADVANCED, schema
from .host.install import apply
from .pictures import first_of, image_of
from .widgets import lines_of, parts_of

_PROMPTS = "a photo of a cat\na photo of a cat on the beach"


class InfusionSnapshotGrid(io.ComfyNode):  # type: ignore[misc]
    """Snapshot Grid."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionSnapshotGrid",
            display_name="Snapshot Grid",
            category="Infusion",
            description="Draw the snapshots of a training side by side: each at every strength, for every prompt, as "
            "one labelled picture.",
            search_aliases=["xy plot", "grid", "compare snapshots", "epochs", "checkpoint compare", "infusion"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's MODEL, without what was trained."),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.Combo.Input(
                    "run",
                    options=snapshots.runs(),
                    tooltip="Date, time and word of a run of Infusion Train, or of APT Train (apt). The newest comes "
                    "first.",
                ),
                io.String.Input(
                    "prompts", default=_PROMPTS, multiline=True,
                    tooltip="What is drawn, a prompt per line, saying the subject as the training did. A column each.",
                ),
                io.String.Input(
                    "strengths", default="1",
                    tooltip="At which every snapshot is drawn, separated by commas. A row each.",
                ),
                io.String.Input(
                    "snapshot_steps", default="",
                    tooltip="Training steps of the snapshots that are shown, separated by commas. Empty: all.",
                ),
                io.Int.Input("size", default=512, min=64, max=4096, step=8, tooltip="Edge of the pictures, px."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of every picture."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps.", **ADVANCED),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale.", **ADVANCED),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="A row for each snapshot and strength.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, run: str | None, **_: Any) -> str:
        """Draw again when the run has other snapshots; one that is gone is seen when it is drawn."""
        try:
            return (
                "" if run is None else " ".join(library.digest(path) for _, path in snapshots_in(snapshots.run_of(run)))
            )
        except InfusionError:
            return ""

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, run: str, prompts: str, strengths: str, snapshot_steps: str, size: int,
        seed: int, steps: int, cfg: float,
    ) -> io.NodeOutput:  # fmt: skip
        """Draw with a progress bar."""
        plan = GridPlan(_numbers(strengths, float), lines_of(prompts))
        files = snapshots_in(snapshots.run_of(run), _numbers(snapshot_steps, int))
        artist = Candidates(model, clip, vae, size, 1, steps, cfg, seed)
        progress = comfy.utils.ProgressBar(plan.cells(len(files)))

        def drawn(loaded: tuple[Any, Any], prompt: str) -> Image.Image:
            picture = first_of(artist.drawn(*loaded, prompt))
            progress.update(1)
            return picture

        grid = plan.drawn([(f"step {step}", file) for step, file in files], partial(_loaded, model, clip), drawn)
        return io.NodeOutput(image_of(grid))


def _loaded(model: Any, clip: Any, file: Path, strength: float) -> tuple[Any, Any]:
    """MODEL and CLIP with a snapshot at a strength."""
    if is_concept_file(file):
        concept = LoadedConcept(file.stem, load_concept(file, file.name), strength)
        return apply(model, clip, [concept], "shared")
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    pair: tuple[Any, Any] = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
    return pair


def _numbers(text: str, kind: Any) -> list[Any]:
    """The numbers of a text widget.

    Raises:
        InfusionError: something else is there.
    """
    try:
        return [kind(part) for part in parts_of(text)]
    except ValueError as error:
        raise InfusionError(
            f"{text!r} is no list of numbers; write them separated by commas, such as 50, 100"
        ) from error
