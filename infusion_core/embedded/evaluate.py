"""Drawing TinyWorld's scenes, and scoring what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .tinyworld.captions import UNSEEN_ASPECTS, caption
from .tinyworld.oracle import Score, score
from .tinyworld.world import Concept, Scene

# Of every picture, see `Score`; the headline first.
ERRORS = (
    "picture_error", "concept_error", "prompt_error", "shape_error", "rim_error", "scene_error", "position_error",
    "size_error",
)  # fmt: skip


Draw = Callable[[str, int, int], Sequence[Image.Image]]  # pictures of a prompt: how many, from which seed on


@dataclass(frozen=True)
class Scored:
    """One generated picture with its prompt, seed and scores."""

    prompt: str
    seed: int
    picture: Image.Image
    score: Score


def evaluate(
    draw: Draw,
    concept: Concept,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    describe: bool = False,
    on_scene: Callable[[], None] | None = None,
    phrase: str | None = None,
) -> list[Scored]:
    """Draw every scene from every seed and score it against the concept.

    Args:
        draw: see `Draw`.
        concept: what should appear.
        scenes: what the prompts describe.
        seeds: one picture each per scene; consecutive numbers are drawn in one batch.
        describe: say the concept's look in words (the oracle caption).
        on_scene: called after each scene.
        phrase: what prompts say for the concept; its word by default.
    """
    out = []
    for scene in scenes:
        said = scene.wearing(concept) if describe else scene
        prompt = caption(said, (*UNSEEN_ASPECTS, "look") if describe else UNSEEN_ASPECTS)
        prompt = prompt.replace(concept.shape, phrase or concept.shape)
        for run in _runs(seeds):
            pictures = draw(prompt, len(run), run[0])
            for seed, picture in zip(run, pictures, strict=True):
                out.append(Scored(prompt, seed, picture, score(picture, scene, concept)))
        if on_scene:
            on_scene()
    return out


def gap_closed(bare: float, described: float, reached: float) -> float:
    """Share of the gap in concept error between class word (0) and oracle caption (1) that a method closes."""
    return (bare - reached) / (bare - described)


def headline(bare: Sequence[Scored], described: Sequence[Scored], learned: Sequence[Scored]) -> dict[str, float]:
    """The figures of `report.json`: mean errors of the base model, the oracle caption and the concept."""

    def mean(scored: Sequence[Scored], name: str) -> float:
        return float(np.mean([getattr(s.score, name) for s in scored]))

    figures = {name: mean(learned, name) for name in ERRORS} | {
        "base_concept_error": mean(bare, "concept_error"),
        "base_scene_error": mean(bare, "scene_error"),
        "base_picture_error": mean(bare, "picture_error"),
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
