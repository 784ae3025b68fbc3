"""Load and save concept files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from . import library, routes
from .host.compat import ADVANCED, schema
from .pictures import thumbnail_of
from .sockets import ConceptSocket, Stack


class InfusionLoadConcept(io.ComfyNode):  # type: ignore[misc]
    """Load Concept Residual."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionLoadConcept",
            display_name="Load Concept Residual",
            category="Infusion",
            description="Load a concept file. Chain several to use several concepts in one prompt.",
            search_aliases=["infusion", "concept", "personalization", "load residual", "subject"],
            inputs=[
                io.Combo.Input(
                    "concept_name",
                    options=library.names(),
                    tooltip="A file in models/infusion or output/infusion. In a prompt, <name> means the file "
                    "name.safetensors.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Scale of the residual. 0 is the base model, bit for bit.",
                ),
                ConceptSocket.Input("previous", optional=True, tooltip="More concepts, from a loader or trainer."),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For Infusion Attention Patch."),
                io.String.Output(display_name="word", tooltip="The word that this file was trained for, for prompts."),
            ],
        )

    @classmethod
    def validate_inputs(cls, concept_name: str | None) -> bool | str:
        """Say before the run what is wrong with the file; a linked name is seen when it is loaded."""
        try:
            return concept_name is None or bool(library.load(concept_name, 1.0))
        except (InfusionError, FileNotFoundError) as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None, **_: Any) -> str:
        """Load again when what is in the file has changed."""
        return library.fingerprint(concept_name)

    @classmethod
    def execute(cls, concept_name: str, strength: float, previous: Stack = ()) -> io.NodeOutput:
        """Read the file."""
        loaded = library.load(concept_name, strength)
        facts = routes.facts(loaded.residual)
        text = f"'{facts['word']}' for {facts['base']}, {facts['steps']} steps, layout {facts['layout']}"
        return io.NodeOutput((*previous, loaded), loaded.residual.word, ui=ui.PreviewText(text))


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
