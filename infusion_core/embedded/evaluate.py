"""Scoring a concept on TinyWorld: prompts its training pictures never showed, and the yardsticks of the base model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image
from scipy import stats

from ...residuals import ConceptResidual
from ..model import EmbeddedModel
from ..sampling import SampleSettings
from ..tasks import Loaded, draw
from .captions import caption
from .oracle import Score, as_pixels, locate, read_background, read_look, score
from .world import BACKGROUNDS, PATTERNS, POSITIONS, SIZES, Concept, Scene, Thing

TOLD = ("size", "position", "background", "pattern")  # what an unseen prompt says; never the look


@dataclass(frozen=True)
class Scored:
    """One generated picture with its prompt, seed and scores."""

    scene: Scene
    prompt: str
    seed: int
    picture: Image.Image
    score: Score


def unseen_scenes(concept: Concept, count: int = 8) -> list[Scene]:
    """Scenes that share neither background nor position with the concept's training pictures."""
    rng = Random(f"unseen {concept.name}")
    backgrounds = [b for b in BACKGROUNDS if b != concept.background]
    positions = [p for p in POSITIONS if p != concept.position]
    every = [
        Scene.of(concept.shape, size, position, background, pattern)
        for size in SIZES
        for position in positions
        for background in backgrounds
        for pattern in PATTERNS
    ]
    return rng.sample(every, count)


def evaluate(
    model: EmbeddedModel,
    concept: Concept,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    settings: SampleSettings,
    residual: ConceptResidual | None = None,
    describe: bool = False,
    on_scene: Callable[[], None] | None = None,
    phrase: str | None = None,
) -> list[Scored]:
    """Draw every scene from every seed and score it against the concept.

    Args:
        model: TinyWorld.
        concept: what should appear.
        scenes: what the prompts describe.
        seeds: one picture each per scene; consecutive numbers are drawn in one batch.
        settings: how to sample.
        residual: the learned concept; without one the base model draws.
        describe: say the concept's look in words (the oracle caption).
        on_scene: called after each scene.
        phrase: what prompts say for the concept; its word by default.
    """
    concepts: Loaded = {} if residual is None else {concept.name: (residual, 1.0)}
    out = []
    for scene in scenes:
        said = scene.wearing(concept) if describe else scene
        prompt = caption(said, (*TOLD, "look") if describe else TOLD)
        prompt = prompt.replace(concept.shape, phrase or concept.shape)
        for run in _runs(seeds):
            pictures = draw(model, prompt, concepts, len(run), run[0], settings)
            for seed, picture in zip(run, pictures, strict=True):
                out.append(Scored(scene, prompt, seed, picture, score(picture, scene, concept)))
        if on_scene:
            on_scene()
    return out


def read_concept(photos: Sequence[Image.Image], shape: str) -> Concept:
    """What TinyWorld training pictures show: the concept behind them, read by the oracle.

    Args:
        photos: 128x128.
        shape: what they show, a shape of TinyWorld.
    """
    looks, places = [], []
    for photo in photos:
        found, size, position = _find(photo, shape)
        looks.append(read_look(photo, found))
        places.append((*read_background(photo), position, size))
    look = max(looks, key=looks.count)
    background, pattern, position, size = max(places, key=places.count)
    return Concept("concept", shape, look, background, pattern, position, size)


def obeyed(picture: Image.Image, scene: Scene) -> dict[str, bool]:
    """Which aspects of a one-thing scene a picture got right."""
    thing = scene.things[0]
    found, size, position = _find(picture, thing.shape)
    colour, pattern = read_background(picture)
    return {
        "position": position == thing.position,
        "size": size == thing.size,
        "background": colour == scene.background,
        "pattern": pattern == scene.pattern,
        "appearance": read_look(picture, found) == thing.look,
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the bounds of its 95% interval (Student's t)."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, mean - half, mean + half


def gap_closed(bare: float, described: float, reached: float) -> float:
    """Share of the gap in concept error between class word (0) and oracle caption (1) that a method closes."""
    return (bare - reached) / (bare - described)


def headline(bare: Sequence[Scored], described: Sequence[Scored], learned: Sequence[Scored]) -> dict[str, float]:
    """The figures of `report.json`: mean errors of the base model, the oracle caption and the concept."""

    def mean(scored: Sequence[Scored], name: str) -> float:
        return float(np.mean([getattr(s.score, name) for s in scored]))

    figures = {
        "concept_error": mean(learned, "concept_error"),
        "scene_error": mean(learned, "scene_error"),
        "position_error": mean(learned, "position_error"),
        "size_error": mean(learned, "size_error"),
        "base_concept_error": mean(bare, "concept_error"),
        "base_scene_error": mean(bare, "scene_error"),
        "oracle_caption_concept_error": mean(described, "concept_error"),
    }
    return figures | {
        "gap_closed": gap_closed(
            figures["base_concept_error"], figures["oracle_caption_concept_error"], figures["concept_error"]
        )
    }


def _runs(seeds: Sequence[int]) -> list[list[int]]:
    """Seeds split into runs of consecutive numbers."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return runs


def _find(picture: Image.Image, shape: str) -> tuple[Thing, str, str]:
    """The thing of a shape wherever it is, with the nearest size and position words."""
    anywhere = Thing(shape)
    found = locate(as_pixels(picture), Scene((anywhere,)), anywhere)
    x, y = found.centre
    position = min(POSITIONS, key=lambda p: math.hypot(x - POSITIONS[p][0], y - POSITIONS[p][1]))
    size = min(SIZES, key=lambda s: abs(SIZES[s] - found.radius))
    return found, size, position
