"""TinyWorld's oracle on a learned concept: prompts its photos never showed, drawn three ways from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

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

from .console import progress
from .output import peak_rss_mb

SEEDS = (0, 1)
Base = Callable[[], AbstractContextManager[None]]  # in which the model draws as the base model does


class Judge(Protocol):
    """Scores what was learned on a model."""

    def __call__(
        self, model: EmbeddedModel, photos: Sequence[Image.Image], word: str, phrase: str, ours: ev.Draw,
        base: Base = nullcontext,
    ) -> dict[str, Any]:  # fmt: skip
        """Figures of the report.

        Args:
            model: the base model.
            photos: that were learned from.
            word: the class word.
            phrase: what prompts say for the subject.
            ours: draws with what was learned.
            base: in which the model draws as the base model does.
        """
        ...


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
    model: EmbeddedModel, concept: Concept, ours: ev.Draw, phrase: str | None = None, base: Base = nullcontext
) -> Comparison:
    """Draw and score unseen prompts, with a progress bar.

    Args:
        model: TinyWorld.
        concept: what should appear.
        ours: draws with what was learned of it.
        phrase: what prompts say for it; its word by default.
        base: in which the model draws as the base model does.
    """
    scenes = unseen_scenes(concept)
    plain = draw_with(model)
    with progress("drawing and scoring unseen prompts", 3 * len(scenes)) as advance:
        learned = ev.evaluate(ours, concept, scenes, SEEDS, on_scene=advance, phrase=phrase)
        with base():
            bare = ev.evaluate(plain, concept, scenes, SEEDS, on_scene=advance)
            described = ev.evaluate(plain, concept, scenes, SEEDS, describe=True, on_scene=advance)
    return Comparison(bare, learned, described)


def draw_with(model: EmbeddedModel, *concepts: LoadedConcept) -> ev.Draw:
    """Draws with a model as it stands, and with concepts."""
    settings = SampleSettings(model.steps, model.guidance)
    return lambda prompt, count, seed: draw(model, prompt, concepts, count, seed, settings)


def score_on_tinyworld(
    model: EmbeddedModel, photos: Sequence[Image.Image], word: str, phrase: str, ours: ev.Draw,
    base: Base = nullcontext,
) -> dict[str, Any]:  # fmt: skip
    """The figures only TinyWorld can give: the oracle reads the concept off the photos and scores unseen prompts.

    Nothing when the word is not one of TinyWorld's shapes.
    """
    if word not in SHAPES:
        return {}
    started = time.monotonic()
    concept = read_concept([square(p, model.resolution) for p in photos], word)
    found = compare(model, concept, ours, phrase, base).figures | {"appearance_read_from_photos": concept.look.words}
    return {**found, "scoring_seconds": time.monotonic() - started, "peak_rss_mb": peak_rss_mb()}


# What can score a concept learned on a model that ships with the project, by the model's name.
JUDGES: dict[str, Judge] = {"tinyworld": score_on_tinyworld}
