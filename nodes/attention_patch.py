"""Infusion Attention Patch: put concepts to work on a MODEL and its CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.schedule import NEVER, Curve, Window
from .host.compat import ADVANCED, curve_input, curve_points, schema
from .host.install import apply
from .host.model import base_of
from .sockets import ConceptSocket, Stack
from .widgets import parts_of

AS_TRAINED, ON, OFF = MAP_REPLACEMENT = "as trained", "on", "off"
_PERCENT: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.01, **ADVANCED}


class InfusionAttentionPatch(io.ComfyNode):  # type: ignore[misc]
    """Infusion Attention Patch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionAttentionPatch",
            display_name="Infusion Attention Patch",
            category="Infusion",
            description="Put concepts to work, like a LoRA loader: use the MODEL for sampling and the CLIP for every "
            "prompt. A prompt that names no concept gives the unpatched model's picture, bit for bit.",
            search_aliases=["infusion", "apply concept", "personalization", "subject", "residual"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Diffusion 1.x, 2.x or XL."),
                io.Clip.Input("clip", tooltip="The model's CLIP. Encode prompts with this node's CLIP output."),
                ConceptSocket.Input("concept", tooltip="One or several concepts."),
                io.Combo.Input(
                    "base_latent",
                    options=["shared", "own"],
                    default="shared",
                    tooltip="Where the layout comes from. shared: from the base model step by step; the picture may "
                    "find its own composition. own: from the base model's own picture of the prompt, sampled first; "
                    "it keeps that picture's composition and takes about twice as long.",
                    **ADVANCED,
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    tooltip="Share of the run where the subject begins to be drawn. Later: more of the base model's "
                    "shapes, less of the subject's.",
                    **_PERCENT,
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    tooltip="Share of the run from where the subject is no longer drawn. Earlier: fine detail is the "
                    "base model's.",
                    **_PERCENT,
                ),
                io.Float.Input(
                    "maps_start",
                    default=0.0,
                    tooltip="Share of the run where the layout begins to come from the base model. Later: the concept "
                    "also moves what is around it.",
                    **_PERCENT,
                ),
                io.Float.Input(
                    "maps_end",
                    default=1.0,
                    tooltip="Share of the run from where the layout no longer comes from the base model. Earlier: "
                    "faster, and the subject may change its own pose and outline. 0: never.",
                    **_PERCENT,
                ),
                io.String.Input(
                    "block_strengths",
                    default="",
                    optional=True,
                    tooltip="How strongly each UNet block draws the subject, for example: down.1=0.5, mid=0, up.1=1.2. "
                    "Blocks not named stay at 1.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "map_replacement",
                    options=list(MAP_REPLACEMENT),
                    default=AS_TRAINED,
                    optional=True,
                    tooltip="Whether the layout comes from the base model, from maps_start to maps_end. as trained: "
                    "for as long as each concept's file says. on: throughout; slower. off: never; faster.",
                    **ADVANCED,
                ),
                curve_input(
                    "strength_curve",
                    default="",
                    optional=True,
                    tooltip="How strongly the subject is drawn over the run, as share:factor, for example 0:1, 1:0 to "
                    "fade it out. A Curve Editor may be connected, where the host has one. Empty: always the same.",
                    **ADVANCED,
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.Clip.Output(tooltip="For every prompt."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Stack,
        base_latent: Any,
        start: float,
        end: float,
        maps_start: float,
        maps_end: float,
        block_strengths: str = "",
        map_replacement: str = AS_TRAINED,
        strength_curve: Any = "",
    ) -> io.NodeOutput:
        """Patch clones of MODEL and CLIP."""
        base = base_of(model)
        scales = parse_block_strengths(block_strengths, sorted({site.block for site in base.sites}))
        window, maps, curve = Window(start, end), Window(maps_start, maps_end), curve_of(strength_curve)
        concepts = [
            replace(c, blocks=scales, window=window, replacement=replacement_of(c, maps, map_replacement), curve=curve)
            for c in concept
        ]
        return io.NodeOutput(*apply(model, clip, concepts, base_latent, str(cls.hidden.unique_id)))


def replacement_of(concept: LoadedConcept, asked: Window, chosen: str) -> Window:
    """When a concept attends with the base model's maps: where asked for, and as `MAP_REPLACEMENT` is chosen."""
    if chosen == AS_TRAINED:
        return asked.overlap(concept.residual.map_window)
    return asked if chosen == ON else NEVER


def parse_block_strengths(text: str, blocks: list[str]) -> Mapping[str, float]:
    """``down.1=0.5, mid=0`` as strength by block.

    Raises:
        InfusionError: a part is not BLOCK=NUMBER, or the model has no such block.
    """
    found: dict[str, float] = {}
    for part in parts_of(text):
        name, _, number = (p.strip() for p in part.partition("="))
        if name not in blocks:
            raise InfusionError(f"block_strengths: this model has no block {name!r}; it has: {', '.join(blocks)}")
        try:
            found[name] = float(number)
        except ValueError:
            raise InfusionError(f"block_strengths: {part!r} is not BLOCK=NUMBER, such as mid=0.5") from None
    return found


def curve_of(given: Any) -> Curve | None:
    """``0:1, 0.5:0.3`` or the host's CURVE as a curve over the run; None for an empty text.

    Raises:
        InfusionError: a part is not SHARE:FACTOR, or the points are not in order within the run.
    """
    if not isinstance(given, str):
        return Curve(curve_points(given))
    points = tuple(_point(part) for part in parts_of(given))
    return Curve(points) if points else None


def _point(part: str) -> tuple[float, float]:
    share, _, factor = part.partition(":")
    try:
        return float(share), float(factor)
    except ValueError:
        raise InfusionError(f"strength_curve: {part!r} is not SHARE:FACTOR, such as 0.5:0.3") from None
