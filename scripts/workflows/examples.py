"""Every example workflow."""

from __future__ import annotations

from collections.abc import Callable

from .concepts import concept_lora_controlnet, one_concept, three_concepts, train_and_draw, what_else_changes
from .loras import guide_a_lora, train_a_lora
from .sheet import Sheet

EXAMPLES: dict[str, Callable[[], Sheet]] = {
    "1-train-and-draw": train_and_draw,
    "2-use-a-concept": one_concept,
    "3-three-concepts": three_concepts,
    "4-concept-lora-controlnet": concept_lora_controlnet,
    "5-what-else-changes": what_else_changes,
    "6-guide-a-lora": guide_a_lora,
    "7-train-a-lora": train_a_lora,
}
