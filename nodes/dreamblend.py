"""DreamBlend Guidance: an early LoRA or checkpoint guides a late one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..infusion_core.dreamblend import LARGEST_ALPHA, BlendSettings, Distance, Mode
from ..infusion_core.errors import InfusionError
from ..infusion_core.schedule import Window
from .host.blend import guide
from .host.compat import ADVANCED, schema
from .host.model import base_of
from .widgets import split_words

_DEFAULT = BlendSettings()


class DreamBlendGuidance(io.ComfyNode):  # type: ignore[misc]
    """DreamBlend Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="DreamBlendGuidance",
            display_name="DreamBlend Guidance",
            category="Infusion",
            description="Draw with an overfitted LoRA or checkpoint while an earlier epoch of the same training, or "
            "the base model, keeps it to the prompt. Use the MODEL for sampling.",
            search_aliases=["dreamblend", "overfit", "epoch", "lora guidance", "attention guidance", "overtrained"],
            inputs=[
                io.Model.Input("model", tooltip="The late model, which draws: the subject is best in it."),
                io.Model.Input(
                    "early_model",
                    tooltip="The early model, which guides: an earlier epoch of the same training, or the base model "
                    "itself. It draws the prompt first, from the same noise.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["gradient", "replacement"],
                    default=_DEFAULT.mode,
                    tooltip="gradient: the picture is moved until the late model attends as the early one does, as "
                    "published; about three times the time. replacement: the late model attends with the early one's "
                    "maps; about twice the time.",
                ),
                io.Float.Input(
                    "alpha",
                    default=_DEFAULT.alpha,
                    min=0.0,
                    max=LARGEST_ALPHA,
                    step=0.005,
                    round=0.0001,
                    tooltip="How strongly the early model guides. 0: not at all. In mode replacement the share of its "
                    "maps, at most 1.",
                ),
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the run where guidance begins.", **ADVANCED,
                ),
                io.Float.Input(
                    "end", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the run from where the late model draws alone. Earlier: faster, with the late "
                    "model's own detail.", **ADVANCED,
                ),
                io.Int.Input(
                    "every", default=1, min=1, max=1000,
                    tooltip="Guide at every so many steps. More: faster, weaker.", **ADVANCED,
                ),
                io.Int.Input(
                    "gradient_steps", default=_DEFAULT.gradient_steps, min=1, max=100,
                    tooltip="In mode gradient, how often the picture is moved at each step.", **ADVANCED,
                ),
                io.Combo.Input(
                    "distance",
                    options=["absolute", "squared"],
                    default=_DEFAULT.distance,
                    tooltip="In mode gradient, how a difference of attention counts. absolute: as published.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "normalise",
                    default=_DEFAULT.normalise,
                    tooltip="In mode gradient, scale each move, so that alpha means the same for every model.",
                    **ADVANCED,
                ),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    tooltip="UNet blocks whose attention counts, separated by commas, such as: mid, up.1. Empty: all.",
                    **ADVANCED,
                ),
                io.Conditioning.Input(
                    "early_positive",
                    optional=True,
                    tooltip="The prompt as the early model's own CLIP encodes it. Needed only where a LoRA changes the "
                    "text encoder.",
                ),
                io.Conditioning.Input(
                    "early_negative", optional=True, tooltip="The negative prompt by the early model's own CLIP."
                ),
            ],
            outputs=[io.Model.Output(tooltip="For the sampler. It draws the early model's picture first.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, early_model: Any, mode: Mode, alpha: float, start: float, end: float, every: int,
        gradient_steps: int, distance: Distance, normalise: bool, layers: str = "", early_positive: Any = None,
        early_negative: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Put guidance on a clone of the late MODEL."""
        settings = BlendSettings(
            mode, alpha, distance, normalise, gradient_steps, every, Window(start, end), tuple(split_words(layers))
        )
        base, early = base_of(model), base_of(early_model)
        if base != early:
            raise InfusionError(
                f"model is of kind {base.architecture}, early_model of kind {early.architecture}; connect two stages "
                "of one training"
            )
        own_text = early_positive is not None or early_negative is not None
        if model.model is early_model.model and model.patches_uuid == early_model.patches_uuid and not own_text:
            raise InfusionError(
                "model and early_model have the same weights, so one cannot guide the other; connect an earlier epoch "
                "or the base model to early_model"
            )
        sites = settings.chosen(base.sites)
        return io.NodeOutput(guide(model, early_model, sites, settings, early_positive, early_negative))
