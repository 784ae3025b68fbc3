"""Infusion Similarity: does the subject look like its photos, and the picture like its prompt?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.errors import InfusionError
from ..infusion_core.metrics.similarity import DINO, cosines, diversity, embed, similarity, text_similarity
from .dino import ADVICE, Dino
from .host.compat import ADVANCED, schema
from .host.vision import image_embeddings, text_embeddings
from .plot import BLUE, INK, ORANGE, Series, plot
from .widgets import lines_of

PUBLISHED_WIDTH = 512  # CLIP ViT-B/32
See = Callable[[Tensor, Tensor | None], Tensor]  # pictures (N, 3, H, W) and masks to embeddings (N, D)


class InfusionSimilarity(io.ComfyNode):  # type: ignore[misc]
    """Infusion Similarity."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionSimilarity",
            display_name="Infusion Similarity",
            category="Infusion",
            description="How much generated pictures look like reference photos (CLIP-I, DINO) and like their prompt "
            "(CLIP-T), and how much they differ among themselves. Raw cosines: 1 is the same.",
            search_aliases=["infusion", "clip score", "clip-i", "clip-t", "dino", "fidelity", "dreambooth", "compare"],
            is_output_node=True,
            inputs=[
                io.Image.Input("generated", tooltip="Pictures you sampled, to be judged."),
                io.Image.Input("reference", tooltip="Photos of the subject they should look like."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Judges likeness in kind (CLIP-I), and the prompt (CLIP-T)."
                ),
                io.Clip.Input(
                    "clip", optional=True,
                    tooltip="Reads the prompt, for CLIP-T. It must have been trained together with CLIP_VISION: that "
                    "of SD 2.x with CLIP-ViT-H, or of SDXL with CLIP-ViT-bigG. If not, the report says so.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True,
                    tooltip="What the pictures were sampled from: one line for all, or one line per picture.",
                ),
                io.Mask.Input(
                    "generated_mask", optional=True,
                    tooltip="Where the subject is in the generated pictures: one mask per picture, or one for all. "
                    "Without masks a copied background counts as likeness.",
                ),
                io.Mask.Input(
                    "reference_mask", optional=True,
                    tooltip="Where the subject is in the photos: one mask per photo, or one for all.",
                ),
                io.String.Input(
                    "dino_folder", default="", optional=True,
                    tooltip="Folder of a local copy of facebook/dino-vits16. Judges whether it is the same subject, "
                    "not only one of its kind (DINO). Nothing is downloaded.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The figures, and what is missing for others."),
                io.Image.Output(display_name="plot", tooltip="Every generated picture: mean over the photos."),
                io.Float.Output(display_name="clip_i", tooltip="Likeness to the photos by CLIP; NaN if not measured."),
                io.Float.Output(display_name="clip_t", tooltip="Likeness to the prompt by CLIP; NaN if not measured."),
                io.Float.Output(display_name="dino", tooltip="Likeness to the photos by DINO; NaN if not measured."),
                io.Float.Output(
                    display_name="diversity", tooltip="Mean 1 - cosine of pictures of one prompt; NaN if not measured."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, generated: Tensor, reference: Tensor, clip_vision: Any = None, clip: Any = None, prompt: str = "",
        generated_mask: Tensor | None = None, reference_mask: Tensor | None = None, dino_folder: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        """Measure what the connected models can measure."""
        prompts = lines_of(prompt)
        if len(prompts) not in (0, 1, len(generated)):
            raise InfusionError(
                f"{len(prompts)} prompts for {len(generated)} pictures; write one line for all, or one line per picture"
            )
        scores = Scores(
            Pictures(generated[..., :3].movedim(-1, 1), generated_mask),
            Pictures(reference[..., :3].movedim(-1, 1), reference_mask),
            prompts,
        )
        scores.add_clip(clip_vision, clip)
        scores.add_dino(dino_folder.strip())
        scores.add_diversity()
        text = scores.report()
        values = [scores.values.get(name, math.nan) for name in ("CLIP-I", "CLIP-T", "DINO", "diversity")]
        return io.NodeOutput(text, similarity_plot(scores.per_picture), *values, ui=ui.PreviewText(text))


@dataclass(frozen=True)
class Pictures:
    """Pictures (N, 3, H, W) in [0, 1], and where the subject is in them, (N or 1, h, w), or None."""

    pixels: Tensor
    mask: Tensor | None


@dataclass
class Scores:
    """What is measured, and what has been so far.

    Attributes:
        generated, reference: what is compared.
        prompts: of the generated pictures: none, one for all, or one each.
        values: by name.
        per_picture: mean over the photos of each generated picture, by name.
        notes: what could not be measured or compared, and why.
        whole: embeddings of the generated pictures without a mask, of the first encoder.
    """

    generated: Pictures
    reference: Pictures
    prompts: list[str]
    values: dict[str, float] = field(default_factory=dict)
    per_picture: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    whole: Tensor | None = None

    def add_clip(self, clip_vision: Any, clip: Any) -> None:
        """CLIP-I; CLIP-T where there are a prompt and a CLIP of the same space."""
        if clip_vision is None:
            self.notes.append("CLIP-I, CLIP-T: connect a CLIP_VISION")
            return
        whole = self._add_images("CLIP-I", lambda pixels, mask: image_embeddings(clip_vision, pixels, mask))
        width = whole.shape[1]
        if width != PUBLISHED_WIDTH:
            self.notes.append(
                f"CLIP-I, CLIP-T: this encoder gives {width} numbers; published figures are made with ViT-B/32 "
                f"({PUBLISHED_WIDTH}) and cannot be compared with these"
            )
        if clip is None or not self.prompts:
            self.notes.append("CLIP-T: connect the CLIP that belongs to CLIP_VISION, and write the prompt")
            return
        try:
            # The whole picture: a prompt also speaks of what is around the subject.
            self.values["CLIP-T"] = text_similarity(whole, text_embeddings(clip, self.prompts, width))
        except InfusionError as error:
            self.notes.append(f"CLIP-T: {error}")

    def add_dino(self, folder: str) -> None:
        """DINO, where there is a folder."""
        if not folder:
            self.notes.append(f"DINO: {ADVICE}")
            return
        dino = Dino(folder)
        self._add_images("DINO", lambda pixels, mask: embed(dino, pixels, DINO, mask))
        if not dino.is_the_papers:
            self.notes.append("DINO: this is no ViT-S/16; published figures cannot be compared with these")

    def add_diversity(self) -> None:
        """Diversity, by the first encoder there was."""
        if self.whole is None:
            return
        numbers = [self.prompts.index(p) for p in self.prompts] if len(self.prompts) > 1 else [0] * len(self.whole)
        try:
            self.values["diversity"] = diversity(self.whole, torch.tensor(numbers))
        except InfusionError as error:
            self.notes.append(f"diversity: {error}")

    def report(self) -> str:
        """Figures, then notes."""
        return "\n".join([*(f"{name} {value:.4f}" for name, value in self.values.items()), *self.notes])

    def _add_images(self, name: str, see: See) -> Tensor:
        """Likeness to the photos; returns the embeddings of the generated pictures without a mask, (N, D)."""
        seen, photos = (see(p.pixels, p.mask) for p in (self.generated, self.reference))
        self.values[name] = similarity(seen, photos)
        self.per_picture[name] = cosines(seen, photos).mean(1).tolist()
        whole = seen if self.generated.mask is None else see(self.generated.pixels, None)
        self.whole = whole if self.whole is None else self.whole
        return whole


def similarity_plot(per_picture: dict[str, list[float]]) -> Tensor:
    """Every generated picture's mean cosine with the photos, by name of the measure, as IMAGE (1, H, W, 3)."""
    colours = {"CLIP-I": BLUE, "DINO": ORANGE}
    series = [
        Series(f"{name} of each picture", colours[name], list(enumerate(values, 1)), dot=4)
        for name, values in per_picture.items()
    ]
    lowest = min((v for values in per_picture.values() for v in values), default=0.0)
    return plot(series or [Series("nothing measured", INK, [(1, 0.0)])], min(0.0, lowest), 1.0)
