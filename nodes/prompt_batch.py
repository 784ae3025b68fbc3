"""Infusion Prompt Batch: a prompt, with its own concepts, for each picture of a batch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..infusion_core.errors import InfusionError
from .host.compat import schema
from .host.joining import joined_prompts
from .widgets import lines_of, plain_name

MOST = 64
_PROMPTS = "a photo of a cat\na photo of a cat on the beach"


class InfusionPromptBatch(io.ComfyNode):  # type: ignore[misc]
    """Infusion Prompt Batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionPromptBatch",
            display_name="Infusion Prompt Batch",
            category="Infusion",
            description="A prompt for each picture of a batch, each with its own concepts: all are drawn in one "
            "sampling run. Set batch_size of the latent to count.",
            search_aliases=["batch prompt", "prompt list", "prompts from lines", "multiple prompts", "infusion"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP output of Infusion Attention Patch."),
                io.String.Input(
                    "prompts", default=_PROMPTS, multiline=True,
                    tooltip="A prompt per line, up to 64; the first is the first picture's. A prompt names a concept "
                    "by its word or as <name>.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler. A negative is for all."),
                io.Int.Output(display_name="count", tooltip="How many prompts there are: batch_size of the latent."),
                io.String.Output(
                    display_name="names", is_output_list=True,
                    tooltip="A name for each picture's file, made of its prompt.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip: Any, prompts: str) -> io.NodeOutput:
        """Encode each line."""
        lines = lines_of(prompts)
        if not lines:
            raise InfusionError("there is no prompt; write one per line")
        if len(lines) > MOST:
            raise InfusionError(f"{len(lines)} prompts are more than the {MOST} of a batch; use several nodes")
        return io.NodeOutput(joined_prompts(clip, lines), len(lines), [plain_name(line) for line in lines])
