"""Inputs and outputs that nodes that train share."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..infusion_core.training.residual import ResidualSettings
from ..infusion_core.training.stopping import Stop, Take
from .host.compat import ADVANCED

CROPS = ("center square", "keep shape")


def bins_input() -> Any:
    """The input ``bins``, of nodes that learn concepts."""
    return io.Int.Input(
        "bins", default=ResidualSettings().bins, min=1, max=10,
        tooltip="Learn the rough stages of a picture and the fine ones apart, in so many parts: nearer to the photos, "
        "a larger file.", **ADVANCED,
    )  # fmt: skip


def shared_inputs() -> list[Any]:
    """``checkpointing`` and ``flip``."""
    return [
        io.Boolean.Input(
            "checkpointing", default=False, optional=True,
            tooltip="Needs less memory and takes longer; what is learned is the same.", **ADVANCED,
        ),
        io.Boolean.Input(
            "flip", default=False, optional=True,
            tooltip="Show each photo mirrored as well. Not for a subject with letters, or another left and right.",
            **ADVANCED,
        ),
    ]  # fmt: skip


def watched_inputs() -> list[Any]:
    """Those of a run of one subject that can be looked at: ``preview_prompts``, ``crop``, ``stop`` and ``take``."""
    return [
        io.String.Input(
            "preview_prompts", default="", multiline=True, optional=True,
            tooltip="What previews draw, one prompt per line, with a pair of curly brackets for the subject. Empty: a "
            "photo of it. Each line always has the same noise.", **ADVANCED,
        ),
        io.Combo.Input(
            "crop", options=list(CROPS), default=CROPS[0], optional=True,
            tooltip="center square: the middle of each photo. keep shape: all of it, wide or high, at about as many "
            "pixels; each pass has photos of one shape. Load Subject Photos gives such photos with crop whole.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "stop", options=list(get_args(Stop)), default="never", optional=True,
            tooltip="plateau: end at the snapshot at which it hardly gets nearer to the photos any more. never: train "
            "all steps.", **ADVANCED,
        ),
        io.Combo.Input(
            "take", options=list(get_args(Take)), default="last", optional=True,
            tooltip="What comes out. last: what was learned last. best: the snapshot at which plateau would end; what "
            "is learned later is often the photos themselves.", **ADVANCED,
        ),
    ]  # fmt: skip


def previews_output() -> Any:
    """The output ``previews``."""
    return io.Image.Output(
        display_name="previews", tooltip="What was drawn while training: a row for each step, a column for each prompt."
    )
