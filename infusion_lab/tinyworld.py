"""What the lab takes from TinyWorld: its model with rare words, its concepts as subjects, captions of its scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random

from PIL import Image

from infusion_core.embedded.model import BUILT_IN, EmbeddedModel
from infusion_core.embedded.text import TextPath, WordTokenizer
from infusion_core.embedded.tinyworld import HELD_OUT_LOOKS, Concept, training_images
from infusion_core.embedded.tinyworld.captions import caption, random_aspects, random_scene
from infusion_core.embedded.tinyworld.words import VOCABULARY_SIZE

from .methods.method import Subject

CAPTIONS = 1000  # that the covariance of text states is taken over


def with_rare_words(model: EmbeddedModel) -> EmbeddedModel:
    """TinyWorld's model that reads ``v1``, ``v2``, ... too: rows of its vocabulary that no word has."""
    known = WordTokenizer.read(BUILT_IN["tinyworld"] / "tokenizer" / "words.json")
    free = range(max(known.ids.values()) + 1, VOCABULARY_SIZE)
    tokenizer = known.with_words({rare_word(index): row for index, row in enumerate(free)})
    (encoder,) = model.text.encoders
    return replace(model, text=TextPath([replace(encoder, tokenizer=tokenizer)]))


def rare_word(index: int) -> str:
    """The word that stands for the subject of an index, counted from 0."""
    return f"v{index + 1}"


def subjects_of(concepts: Sequence[Concept]) -> tuple[Subject, ...]:
    """TinyWorld concepts as subjects, each with a rare word of its own."""
    return tuple(Subject(c.name, c.shape, _photos(c), rare_word(i)) for i, c in enumerate(concepts))


def some_captions() -> tuple[str, ...]:
    """Captions of random scenes, always the same."""
    rng = Random("text covariance")
    scenes = [random_scene(rng, HELD_OUT_LOOKS) for _ in range(CAPTIONS)]
    return tuple(caption(scene, random_aspects(rng)) for scene in scenes)


@cache
def _photos(concept: Concept) -> tuple[Image.Image, ...]:
    return tuple(training_images(concept))
