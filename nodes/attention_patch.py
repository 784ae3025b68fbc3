"""Infusion Attention Patch: put concepts to work on a MODEL and its CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.schedule import NEVER, Window
from .host.compat import schema
from .host.install import apply
from .host.model import base_of
from .sockets import ConceptSocket, Stack

AS_TRAINED, ON, OFF = MAP_REPLACEMENT = "as trained", "on", "off"
_PERCENT: dict[str, Any] = {"min": 0.0, "max": 1.0, "step": 0.01}


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
                    tooltip="shared: attention maps come from the base model on the same latent. own: from the base "
                    "model's own picture of the prompt, sampled first (slower).",
                ),
                io.Float.Input("start", default=0.0, tooltip="Share of the run where residuals begin.", **_PERCENT),
                io.Float.Input("end", default=1.0, tooltip="Share of the run where residuals end.", **_PERCENT),
                io.Float.Input(
                    "maps_start", default=0.0, tooltip="Share of the run where map replacement begins.", **_PERCENT
                ),
                io.Float.Input(
                    "maps_end",
                    default=1.0,
                    tooltip="Share of the run where map replacement ends. From there on no base pass is run: faster. "
                    "0 never replaces maps.",
                    **_PERCENT,
                ),
                io.String.Input(
                    "block_strengths",
                    default="",
                    optional=True,
                    tooltip="Scale of the residual per UNet block, for example: down.1=0.5, mid=0, up.1=1.2. Blocks "
                    "not named stay at 1.",
                ),
                io.Combo.Input(
                    "map_replacement",
                    options=list(MAP_REPLACEMENT),
                    default=AS_TRAINED,
                    optional=True,
                    tooltip="Whether concepts attend with the base model's maps, from maps_start to maps_end. as "
                    "trained: those whose file does not say otherwise.",
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
    ) -> io.NodeOutput:
        """Patch clones of MODEL and CLIP."""
        base = base_of(model)
        scales = parse_block_strengths(block_strengths, sorted({site.block for site in base.sites}))
        window, maps = Window(start, end), Window(maps_start, maps_end)
        concepts = [
            replace(c, blocks=scales, window=window, replacement=maps if replaces_maps(c, map_replacement) else NEVER)
            for c in concept
        ]
        return io.NodeOutput(*apply(model, clip, concepts, base_latent, str(cls.hidden.unique_id)))


def replaces_maps(concept: LoadedConcept, chosen: str) -> bool:
    """Whether a concept attends with the base model's maps, by the choice of `MAP_REPLACEMENT`."""
    return concept.residual.replace_maps if chosen == AS_TRAINED else chosen == ON


def parse_block_strengths(text: str, blocks: list[str]) -> Mapping[str, float]:
    """``down.1=0.5, mid=0`` as strength by block.

    Raises:
        InfusionError: a part is not BLOCK=NUMBER, or the model has no such block.
    """
    found: dict[str, float] = {}
    for part in re.split(r"[,;\n]+", text):
        if not part.strip():
            continue
        name, _, number = (p.strip() for p in part.partition("="))
        if name not in blocks:
            raise InfusionError(f"block_strengths: this model has no block {name!r}; it has: {', '.join(blocks)}")
        try:
            found[name] = float(number)
        except ValueError:
            raise InfusionError(f"block_strengths: {part.strip()!r} is not BLOCK=NUMBER, such as mid=0.5") from None
    return found
