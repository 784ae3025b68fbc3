"""TinyWorld's oracle on a learned concept: prompts its photos never showed, drawn three ways from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded import evaluate as ev
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.photos import square
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld import Concept
from infusion_core.embedded.tinyworld.captions import unseen_scenes
from infusion_core.embedded.tinyworld.reading import read_concept
from infusion_core.embedded.tinyworld.world import SHAPES
from infusion_core.residuals import ConceptResidual

from .console import progress
from .output import peak_rss_mb

SEEDS = (0, 1)
Judge = Callable[[EmbeddedModel, Sequence[Image.Image], ConceptResidual], dict[str, Any]]
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
    described: list[ev.Scored]

    @property
    def figures(self) -> dict[str, float]:
        """The figures of `report.json`."""
        return ev.headline(self.bare, self.described, self.learned)


def compare(
    model: EmbeddedModel,
    concept: Concept,
    residual: ConceptResidual,
    seeds: Sequence[int] = SEEDS,
) -> Comparison:
    """Draw and score unseen prompts, with a progress bar.

    Args:
        model: TinyWorld.
        concept: what should appear.
        residual: what was learned of it.
        seeds: of the pictures of each prompt.
    """
    scenes = unseen_scenes(concept)
    settings = SampleSettings(model.steps, model.guidance)

    def with_concepts(*concepts: LoadedConcept) -> ev.Draw:
        return lambda prompt, count, seed: draw(model, prompt, concepts, count, seed, settings)

    base, ours = with_concepts(), with_concepts(LoadedConcept(concept.name, residual))
    with progress("drawing and scoring unseen prompts", 3 * len(scenes)) as advance:
        bare = ev.evaluate(base, concept, scenes, seeds, on_scene=advance)
        learned = ev.evaluate(ours, concept, scenes, seeds, on_scene=advance)
        described = ev.evaluate(base, concept, scenes, seeds, describe=True, on_scene=advance)
    return Comparison(bare, learned, described)


def score_on_tinyworld(
    model: EmbeddedModel, photos: Sequence[Image.Image], residual: ConceptResidual
) -> dict[str, Any]:
    """The figures only TinyWorld can give: the oracle reads the concept off the photos and scores unseen prompts.

    Nothing when the word is not one of TinyWorld's shapes.
    """
    if residual.word not in SHAPES:
        return {}
    started = time.monotonic()
    concept = read_concept([square(p, model.resolution) for p in photos], residual.word)
    figures = compare(model, concept, residual).figures | {"appearance_read_from_photos": concept.look.words}
    return {**figures, "scoring_seconds": time.monotonic() - started, "peak_rss_mb": peak_rss_mb()}


# What can score a concept learned on a model that ships with the project, by the model's name.
JUDGES: dict[str, Judge] = {"tinyworld": score_on_tinyworld}
