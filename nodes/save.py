"""Save a concept file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.concepts import LoadedConcept
from . import library
from .host.compat import ADVANCED, schema
from .pictures import thumbnail_of
from .sockets import ConceptSocket, Stack


class InfusionSaveConcept(io.ComfyNode):  # type: ignore[misc]
    """Save Concept Residual."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionSaveConcept",
            display_name="Save Concept Residual",
            category="Infusion",
            description="Save a learned concept to output/infusion, where the loader finds it.",
            search_aliases=["infusion", "save residual"],
            is_output_node=True,
            inputs=[
                ConceptSocket.Input("concept", tooltip="From Infusion Train. With several, the last one is saved."),
                io.String.Input(
                    "filename",
                    default="my-concept",
                    tooltip="Name below output/infusion. A number is added if the file exists; nothing is overwritten.",
                ),
                io.Combo.Input(
                    "storage",
                    options=["fp16", "int8"],
                    default="fp16",
                    tooltip="int8 halves the file; the picture changes very little.",
                    **ADVANCED,
                ),
                io.Image.Input(
                    "thumbnail", optional=True, tooltip="Picture the loader shows. Without it: the first photo."
                ),
            ],
            outputs=[ConceptSocket.Output(display_name="concept", tooltip="The concept that was saved.")],
        )

    @classmethod
    def execute(cls, concept: Stack, filename: str, storage: Any, thumbnail: Tensor | None = None) -> io.NodeOutput:
        """Write the file."""
        saved = concept[-1]
        residual = replace(saved.residual, training={**saved.residual.training, "title": filename.strip()})
        if thumbnail is not None:
            residual = replace(residual, thumbnail=thumbnail_of(thumbnail))
        path = library.save(residual, filename, storage)
        named = LoadedConcept(path.stem, residual, saved.strength)
        return io.NodeOutput((named,), ui=ui.PreviewText(f"{path.name}, {path.stat().st_size:,} bytes"))
