"""Infusion Train Many: a concept from each folder of photos in a folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..infusion_core.errors import InfusionError
from ..infusion_core.residuals import LAYOUTS
from ..infusion_core.tensor_file import SUFFIX
from ..infusion_core.training.residual import ResidualSettings
from . import library
from .folders import subjects_in
from .host.compat import ADVANCED, schema
from .many_training import Asked, Many
from .sockets import ConceptSocket
from .training_inputs import bins_input, shared_inputs

_DEFAULT = ResidualSettings()


class Lost:
    """How often concept files were lost, by which the host tells a run that has something to do.

    Whether a file is there would not do: it is not at the first run, and is at the second, which has nothing to do.
    """

    def __init__(self) -> None:
        self._there: set[Path] = set()
        self._times = Counter[Path]()

    def note(self, file: Path, there: bool) -> None:
        """What came of a file in a run."""
        if there:
            self._there.add(file)
        else:
            self._times[file] += 1

    def times(self, file: Path) -> int:
        """Of a file: that it was there and is gone, or could not be made."""
        if file in self._there and not file.exists():
            self._there.remove(file)
            self._times[file] += 1
        return self._times[file]


class InfusionTrainMany(io.ComfyNode):  # type: ignore[misc]
    """Infusion Train Many."""

    _lost = Lost()

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionTrainMany",
            display_name="Infusion Train Many",
            category="Infusion",
            description="Learn a concept from each folder of photos in a folder, several in one run. What is there "
            "already is not learned again.",
            search_aliases=["infusion", "batch train", "queue", "train folder", "dataset", "many concepts"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model: Stable Diffusion 1.x, 2.x or XL. Its weights are not changed."
                ),
                io.Clip.Input("clip", tooltip="The model's CLIP."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input(
                    "folder", default="",
                    tooltip="A folder that holds a folder of photos for each subject: its name below ComfyUI's input "
                    "folder, or a whole path.",
                ),
                io.String.Input(
                    "word", default="",
                    tooltip="The class word of all subjects, such as cat. A folder may hold its own in a file "
                    "word.txt. Empty: the folders' names.",
                ),
                io.Int.Input(
                    "steps", default=_DEFAULT.steps, min=1, max=10000, tooltip="How long to learn each concept.",
                ),
                io.Int.Input(
                    "together", default=2, min=1, max=64,
                    tooltip="Concepts that share a run: faster than one after another, with as much more memory. Each "
                    "learns what it would learn alone.",
                ),
                io.Int.Input(
                    "batch_size", default=_DEFAULT.batch_size, min=1, max=64,
                    tooltip="Looks at the photos of each concept in each step.", **ADVANCED,
                ),
                io.Int.Input(
                    "accumulation", default=1, min=1, max=64,
                    tooltip="Passes in each step: as a larger batch, without its memory.", **ADVANCED,
                ),
                io.Float.Input(
                    "learning_rate", default=_DEFAULT.learning_rate, min=1e-5, max=1.0, step=1e-5,
                    tooltip="How far each step goes.", **ADVANCED,
                ),
                io.Combo.Input(
                    "layout", options=list(LAYOUTS), default=_DEFAULT.layout,
                    tooltip="How much room there is for detail; see Infusion Train.", **ADVANCED,
                ),
                bins_input(),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Edge in pixels the photos are scaled to: 512 for SD 1.x, 768 or 512 for 2.x, 1024 for XL.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, tooltip="Of every random choice."),
                io.String.Input(
                    "save_in", default="many",
                    tooltip="Folder below output/infusion for the concept files, called as the folders of photos are.",
                ),
                *shared_inputs(),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concepts", tooltip="All that are there, for the patch."),
                io.String.Output(display_name="told", tooltip="A line on each folder: trained, already there, failed."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """Say before the run that there is nothing to learn; a linked text is seen later."""
        try:
            return folder is None or bool(subjects_in(folder.strip()))
        except InfusionError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, save_in: str | None = None, **_: Any) -> str:
        """Run again when a photo has changed, or a concept file is gone or could not be made; what a linked text names
        is not known yet.
        """
        if folder is None or save_in is None:
            return ""
        subjects = subjects_in(folder.strip())
        photos = [subject.fingerprint() for subject in subjects]
        files = [library.folder_below(save_in) / f"{s.name}{SUFFIX}" for s in subjects]
        return f"{photos} {[cls._lost.times(file) for file in files]}"

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, folder: str, word: str, steps: int, together: int, batch_size: int,
        accumulation: int, learning_rate: float, layout: Any, bins: int, resolution: int, seed: int, save_in: str,
        checkpointing: bool = False, flip: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        """Train what is not there yet, with a progress bar; an interrupt keeps the concepts that are done."""
        settings = ResidualSettings(
            steps=steps, batch_size=batch_size, accumulation=accumulation, learning_rate=learning_rate, layout=layout,
            bins=bins, seed=seed,
        )  # fmt: skip
        out = library.folder_below(save_in)
        asked = Asked(model, clip, vae, settings, word.strip(), resolution, together, out, checkpointing, flip)
        many = Many(asked, subjects_in(folder.strip()))
        concepts, told = many.run()
        for entry in many.entries:
            if not entry.subject.why:  # of a folder that cannot be used, its fingerprint tells when that has changed
                cls._lost.note(entry.file, entry.concept is not None)
        if not concepts:
            raise InfusionError(f"no concept could be learned. {told}")
        return io.NodeOutput(concepts, told, ui=ui.PreviewText(told))
