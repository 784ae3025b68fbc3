"""TinyWorld's oracle on a learned concept: prompts its photos never showed, drawn three ways from the same noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.photos import square
from infusion_core.embedded.sampling import ALWAYS, SampleSettings, Window
from infusion_core.embedded.tinyworld import Concept
from infusion_core.embedded.tinyworld import evaluate as ev
from infusion_core.embedded.tinyworld.world import SHAPES
from infusion_core.residuals import ConceptResidual

from .console import progress
from .output import peak_rss_mb

SEEDS = (0, 1)
FIGURES = (  # what reports hold of it; null where TinyWorld cannot tell
    "concept_error",
    "scene_error",
    "base_concept_error",
    "base_scene_error",
    "oracle_caption_concept_error",
    "gap_closed",
)


class Comparison(NamedTuple):
    """Three ways of the same scenes and noise: the bare word, the learned concept, and the look told in words."""

    bare: list[ev.Scored]
    learned: list[ev.Scored]
    told: list[ev.Scored]

    @property
    def figures(self) -> dict[str, float]:
        """The figures of `report.json`."""
        return ev.headline(self.bare, self.told, self.learned)


def compare(
    model: EmbeddedModel,
    concept: Concept,
    residual: ConceptResidual,
    replacement: Window = ALWAYS,
    seeds: Sequence[int] = SEEDS,
) -> Comparison:
    """Draw and score unseen prompts, with a progress bar.

    Args:
        model: TinyWorld.
        concept: what should appear.
        residual: what was learned of it.
        replacement: when maps are replaced.
        seeds: of the pictures of each prompt.
    """
    scenes = ev.unseen_scenes(concept)
    settings = SampleSettings(model.steps, model.guidance)
    with progress("drawing and scoring unseen prompts", 3 * len(scenes)) as advance:
        bare = ev.evaluate(model, concept, scenes, seeds, settings, on_scene=advance)
        ours = replace(settings, replacement=replacement)
        learned = ev.evaluate(model, concept, scenes, seeds, ours, residual, on_scene=advance)
        told = ev.evaluate(model, concept, scenes, seeds, settings, describe=True, on_scene=advance)
    return Comparison(bare, learned, told)


def score_on_tinyworld(
    model: EmbeddedModel, photos: Sequence[Image.Image], residual: ConceptResidual, replacement: Window = ALWAYS
) -> dict[str, Any]:
    """The figures only TinyWorld can give: the oracle reads the concept off the photos and scores unseen prompts.

    Nothing when the word is not one of TinyWorld's shapes.
    """
    if residual.word not in SHAPES:
        return {}
    started = time.monotonic()
    concept = ev.read_concept([square(p, model.resolution) for p in photos], residual.word)
    figures = compare(model, concept, residual, replacement).figures | {
        "appearance_read_from_photos": concept.look.words
    }
    return {**figures, "scoring_seconds": time.monotonic() - started, "peak_rss_mb": peak_rss_mb()}
