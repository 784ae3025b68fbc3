"""Load concept files: one, several in one node, or a snapshot of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from . import library, routes, snapshots
from .host.compat import schema
from .sockets import ConceptSocket, Stack

ROWS = (2, 3, 4, 5, 6)  # how many files one node loads
Rows = Mapping[str, Any]  # what the rows' widgets hold: concept_1, strength_1, concept_2 and so on


def strength_input(name: str) -> io.Float.Input:
    """The scale of a residual."""
    tooltip = "How strongly the concept shows. 1 is as trained; 0 is the base model, bit for bit."
    return io.Float.Input(name, default=1.0, min=-4.0, max=4.0, step=0.05, tooltip=tooltip)


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
                strength_input("strength"),
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
        except InfusionError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None, **_: Any) -> str:
        """Load again when what is in the file has changed."""
        return library.fingerprint(concept_name)

    @classmethod
    def execute(cls, concept_name: str, strength: float, previous: Stack = ()) -> io.NodeOutput:
        """Read the file."""
        loaded = library.load(concept_name, strength)
        return io.NodeOutput((*previous, loaded), loaded.residual.word, ui=ui.PreviewText(_line(loaded)))


class InfusionLoadConcepts(io.ComfyNode):  # type: ignore[misc]
    """Load Concept Residuals."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        files = library.names()
        return schema(
            node_id="InfusionLoadConcepts",
            display_name="Load Concept Residuals",
            category="Infusion",
            description="Load several concept files, for several subjects in one prompt.",
            search_aliases=["infusion", "concepts", "several subjects", "load residuals", "stack"],
            inputs=[
                io.DynamicCombo.Input(
                    "concepts",
                    options=[io.DynamicCombo.Option(str(count), cls._rows(files, count)) for count in ROWS],
                    tooltip="How many concept files to load.",
                ),
                ConceptSocket.Input("previous", optional=True, tooltip="More concepts, from a loader or trainer."),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For Infusion Attention Patch."),
                io.String.Output(display_name="words", tooltip="The words of all concepts, joined by commas."),
            ],
        )

    @classmethod
    def _rows(cls, files: list[str], count: int) -> list[io.Input]:
        tooltip = "A file in models/infusion or output/infusion. In a prompt, <name> means the file name.safetensors."
        return [
            widget
            for row in range(1, count + 1)
            for widget in (
                io.Combo.Input(f"concept_{row}", options=files, tooltip=tooltip),
                strength_input(f"strength_{row}"),
            )
        ]

    @classmethod
    def fingerprint_inputs(cls, concepts: Rows, **_: Any) -> str:
        """Load again when what is in a file has changed."""
        return library.fingerprint(*(name for name, _ in _chosen(concepts)))

    @classmethod
    def execute(cls, concepts: Rows, previous: Stack = ()) -> io.NodeOutput:
        """Read the files."""
        stack = (*previous, *(library.load(name, strength) for name, strength in _chosen(concepts)))
        words = ", ".join(concept.residual.word for concept in stack)
        return io.NodeOutput(stack, words, ui=ui.PreviewText("\n".join(map(_line, stack))))


class InfusionLoadSnapshot(io.ComfyNode):  # type: ignore[misc]
    """Load Training Snapshot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionLoadSnapshot",
            display_name="Load Training Snapshot",
            category="Infusion",
            description="Load what Infusion Train had learned at an earlier step, or when it was stopped. The folders "
            f"of the newest {snapshots.RUNS_KEPT} runs are kept; Save Concept Residual keeps one for good.",
            search_aliases=["infusion", "snapshot", "checkpoint", "interrupted", "resume", "continue training"],
            inputs=[
                io.Combo.Input(
                    "snapshot",
                    options=snapshots.names(),
                    tooltip="Date, time and word of the run, and the step. The newest run comes first.",
                ),
                strength_input("strength"),
                ConceptSocket.Input("previous", optional=True, tooltip="More concepts, from a loader or trainer."),
            ],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept",
                    tooltip="For Infusion Attention Patch, Save Concept Residual, or continue_from of Infusion Train.",
                ),
                io.String.Output(display_name="word", tooltip="The word that was trained, for prompts."),
            ],
        )

    @classmethod
    def validate_inputs(cls, snapshot: str | None) -> bool | str:
        """Say before the run what is wrong with the file; a linked name is seen when it is loaded."""
        try:
            return snapshot is None or bool(snapshots.load(snapshot, 1.0))
        except InfusionError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, snapshot: str | None, **_: Any) -> str:
        """Load again when what is in the file has changed."""
        return "" if snapshot is None else library.digest(snapshots.path_of(snapshot))

    @classmethod
    def execute(cls, snapshot: str, strength: float, previous: Stack = ()) -> io.NodeOutput:
        """Read the file."""
        loaded = snapshots.load(snapshot, strength)
        return io.NodeOutput((*previous, loaded), loaded.residual.word, ui=ui.PreviewText(_line(loaded)))


def _chosen(rows: Rows) -> list[tuple[str, float]]:
    """File and strength of each row."""
    return [(rows[f"concept_{row}"], rows[f"strength_{row}"]) for row in range(1, int(rows["concepts"]) + 1)]


def _line(concept: LoadedConcept) -> str:
    """What a user wants to know of a loaded concept."""
    facts = routes.facts(concept.residual)
    return (
        f"{concept.name}: '{facts['word']}' for {facts['base']}, {facts['steps']} steps, layout {facts['layout']}, "
        f"strength {concept.strength:g}"
    )
