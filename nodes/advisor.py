"""Checkpoint Advisor: which epochs of a LoRA make the best pair for DreamBlend Guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.advisor import MOST_TRIALS, PROMPTS, Advice, Judged, Survey, advise, check_prompts, trials
from ..infusion_core.captions import fill
from ..infusion_core.errors import InfusionError
from ..infusion_core.grid import labelled_grid
from ..infusion_core.metrics.similarity import DINO, embed, similarity, text_similarity
from .dino import Dino
from .host.candidates import Candidates
from .host.compat import ADVANCED, schema
from .host.vision import image_embeddings, text_embeddings
from .pictures import first_of, image_of
from .plot import BLUE, ORANGE, Series, plot
from .widgets import lines_of

Scores = Callable[[int, Tensor], tuple[float, float]]  # of pictures (N, H, W, 3) of a prompt: likeness, obedience


class CheckpointAdvisor(io.ComfyNode):  # type: ignore[misc]
    """Checkpoint Advisor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="CheckpointAdvisor",
            display_name="Checkpoint Advisor",
            category="Infusion",
            description="Draw a few prompts with every epoch of a LoRA, then with the best one under guidance, and say "
            "which pair to use in DreamBlend Guidance.",
            search_aliases=["dreamblend", "epoch", "lora compare", "xy plot", "overfit", "best checkpoint"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's MODEL, without the LoRA."),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.String.Input(
                    "epochs", default="", multiline=True,
                    tooltip="LoRA files in models/loras, one name per line, in the order of the training.",
                ),
                io.String.Input(
                    "subject", default="sks cat", tooltip="What prompts say for it, as the training did."
                ),
                io.String.Input(
                    "prompts", default="\n".join(PROMPTS), multiline=True,
                    tooltip="What is drawn, one prompt per line, with a pair of braces where the subject is named.",
                ),
                io.Int.Input("size", default=512, min=64, max=4096, step=8, tooltip="Edge of the pictures, px."),
                io.Int.Input("count", default=1, min=1, max=16, tooltip="Pictures of each prompt."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps.", **ADVANCED),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale.", **ADVANCED),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="Of all pictures."),
                io.Image.Input("photos", optional=True, tooltip="Photos of the subject, to judge likeness."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Judges obedience, and likeness where there is no DINO."
                ),
                io.Clip.Input(
                    "score_clip", optional=True,
                    tooltip="Reads the prompts for CLIP_VISION. It must have been trained together with it.",
                ),
                io.String.Input(
                    "dino_folder", default="", optional=True,
                    tooltip="Folder of a local copy of facebook/dino-vits16. Judges whether it is the same subject.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="Every epoch and pair, every prompt."),
                io.Image.Output(display_name="curve", tooltip="Attention collapse over the epochs."),
                io.String.Output(display_name="report", tooltip="The figures, and what is suggested."),
                io.String.Output(display_name="late", tooltip="The epoch to draw with."),
                io.String.Output(display_name="early", tooltip="What should guide it; empty for nothing."),
                io.Float.Output(display_name="alpha", tooltip="How strongly; 0 for not at all."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        epochs: str,
        subject: str,
        prompts: str,
        size: int,
        count: int,
        steps: int,
        cfg: float,
        seed: int,
        photos: Tensor | None = None,
        clip_vision: Any = None,
        score_clip: Any = None,
        dino_folder: str = "",
    ) -> io.NodeOutput:
        """Draw everything with a progress bar."""
        names, templates = lines_of(epochs), lines_of(prompts)
        if len(names) < 2 or len({*names}) < len(names) or not subject.strip() or not templates:
            raise InfusionError("write at least two different LoRA files, a subject and a prompt")
        check_prompts(templates)
        scores = scores_of(templates, subject, photos, clip_vision, score_clip, dino_folder)
        progress = comfy.utils.ProgressBar((len(names) + 1 + (MOST_TRIALS if scores else 0)) * len(templates))
        artist = Candidates(model, clip, vae, size, count, steps, cfg, seed)
        survey = Survey(artist, templates, subject, scores, lambda: progress.update(1))
        alone = survey.alone(names)
        tried = survey.guided(trials(alone)) if scores else []
        judged, advice = [*alone, *tried], advise(alone, tried)
        rows = [(one.setup.title, [first_of(shown) for shown in survey.pictures[one.setup]]) for one in judged]
        grid = labelled_grid(rows, survey.prompts)
        text = report(judged, advice)
        return io.NodeOutput(
            image_of(grid),
            collapse_plot(alone),
            text,
            advice.setup.late,
            advice.setup.early or "",
            advice.setup.alpha,
            ui=ui.PreviewText(text),
        )


def scores_of(
    templates: Sequence[str], subject: str, photos: Tensor | None, clip_vision: Any, clip: Any, dino_folder: str
) -> Scores | None:
    """Who judges: DINO or CLIP against the photos, CLIP against the prompt; None where something is missing.

    Raises:
        InfusionError: CLIP and CLIP_VISION are no pair, or the folder holds no DINO.
    """
    if photos is None or clip_vision is None or clip is None:
        return None

    def seen(pictures: Tensor) -> Tensor:
        return image_embeddings(clip_vision, pictures[..., :3].movedim(-1, 1), None)

    dino = Dino(dino_folder) if dino_folder.strip() else None

    def alike(pictures: Tensor) -> Tensor:
        return seen(pictures) if dino is None else embed(dino, pictures[..., :3].movedim(-1, 1), DINO)

    reference, word = alike(photos), subject.split()[-1]
    width = seen(photos[:1]).shape[1]
    texts = text_embeddings(clip, fill(tuple(templates), word, "prompt"), width)

    def scores(index: int, pictures: Tensor) -> tuple[float, float]:
        return similarity(alike(pictures), reference), text_similarity(seen(pictures), texts[index : index + 1])

    return scores


def report(judged: Sequence[Judged], advice: Advice) -> str:
    """The figures in words, and what is suggested."""

    def told(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [
        f"  likeness {told(one.subject)}, prompt {told(one.prompt)}, collapse {told(one.collapse)}: {one.setup.title}"
        for one in judged
    ]
    return "\n".join([f"draw with {advice.setup.title} ({advice.reason})", *rows])


def collapse_plot(alone: Sequence[Judged]) -> Tensor:
    """Collapse, and where it is known likeness and obedience, over the epochs, as IMAGE (1, H, W, 3)."""
    series = [Series("attention collapse", ORANGE, [(i, one.collapse or 0.0) for i, one in enumerate(alone)], 2, 3)]
    for label, colour, values in (
        ("likeness", BLUE, [one.subject for one in alone]),
        ("prompt", "#2da44e", [one.prompt for one in alone]),
    ):
        points = [(float(i), value) for i, value in enumerate(values) if value is not None]
        series += [Series(label, colour, points, 2, 3)] if points else []
    every = [y for one in series for _, y in one.points]
    return plot(series, min(0.0, *every), max(*every, 0.01) * 1.05)
