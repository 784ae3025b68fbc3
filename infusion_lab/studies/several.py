"""Study: two and three concepts in one prompt, and how much of each leaks into the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from PIL import Image

from infusion_core.embedded.tinyworld import CONCEPTS, Concept, score
from infusion_core.embedded.tinyworld.captions import SPREADS, UNSEEN_ASPECTS, caption
from infusion_core.embedded.tinyworld.world import BACKGROUNDS, PATTERNS, Scene, Thing

from ..bench import Bench
from ..measures import CLASS_WORD, LOOK_IN_WORDS
from ..methods.method import Customised, Method
from ..store import Cell, Result, Row

STUDY = "several"
JOIN = "+"  # between names of a group
SHOWN = 2  # pictures kept for the report


def cells(bench: Bench) -> list[Cell]:
    """Per group of concepts one cell for each yardstick and each method."""
    out = []
    for names in bench.scale.groups:
        group, label = [CONCEPTS[name] for name in names], JOIN.join(names)
        depends = group, scenes_of(group, bench.scale.group_prompts), bench.amounts("seeds")
        for name in (CLASS_WORD, LOOK_IN_WORDS):
            out.append(bench.cell(STUDY, name, label, partial(_yardstick, bench, name, group), *depends))
        for method in bench.methods:
            compute, source = partial(_method, bench, method, group), bench.own_source(method, group)
            out.append(bench.cell(STUDY, method.key, label, compute, *depends, source))
    return out


def size(label: str) -> int:
    """How many concepts a cell or row of this study has, by its ``concept``."""
    return len(label.split(JOIN))


def scenes_of(group: Sequence[Concept], count: int) -> list[Scene]:
    """Scenes that hold one thing of each concept's shape, in any order.

    Places keep the order in which TinyWorld's captions name them, left before right and top before bottom: the base
    model has never read another one, and draws the first thing on the left whatever the prompt says.
    """
    rng = Random("several " + " ".join(c.name for c in group))
    out = []
    for _ in range(count):
        ordered, places = rng.sample(group, len(group)), rng.choice(SPREADS[len(group)])
        things = tuple(Thing(c.shape, "small", place) for c, place in zip(ordered, places, strict=True))
        out.append(Scene(things, rng.choice(tuple(BACKGROUNDS)), rng.choice(PATTERNS)))
    return out


def errors_against(picture: Image.Image, scene: Scene, concept: Concept, group: Sequence[Concept]) -> dict[str, float]:
    """A thing's error against its own concept's look, by name, and against every other concept's look."""
    dressed = scene.wearing(group)
    worn = {c.name: Concept(c.name, concept.shape, c.look) for c in group}
    return {name: score(picture, dressed, other).concept_error for name, other in worn.items()}


def _yardstick(bench: Bench, name: str, group: list[Concept]) -> Result:
    shapes = tuple(c.shape for c in group)
    return _measure(bench, name, group, 0, Customised(bench.studio.base, shapes))


def _method(bench: Bench, method: Method, group: list[Concept]) -> Result:
    learned, _ = bench.learned(method, group)
    return _measure(bench, method.key, group, bench.steps(method), method.apply(bench.studio, learned))


def _measure(bench: Bench, name: str, group: list[Concept], step: int, customised: Customised) -> Result:
    result = Result()
    for index, scene in enumerate(scenes_of(group, bench.scale.group_prompts)):
        told = name == LOOK_IN_WORDS
        prompt = caption(scene.wearing(group) if told else scene, (*UNSEEN_ASPECTS, *(["look"] if told else [])))
        for concept, phrase in zip(group, customised.phrases, strict=True):
            prompt = prompt.replace(concept.shape, phrase)
        pictures = customised.draw(prompt, bench.scale.seeds, bench.seeds[0], bench.sampling)
        for seed, picture in zip(bench.seeds, pictures, strict=True):
            result.rows += _rows(name, group, step, prompt, seed, picture, scene)
        if index < SHOWN:
            result.pictures[prompt] = pictures[0]
    return result


def _rows(
    name: str, group: list[Concept], step: int, prompt: str, seed: int, picture: Image.Image, scene: Scene
) -> list[Row]:
    rows = []
    label = JOIN.join(c.name for c in group)
    for concept in group:
        errors = errors_against(picture, scene, concept, group)
        own, others = errors[concept.name], [e for n, e in errors.items() if n != concept.name]
        found = {
            "own_error": own,
            "other_error": min(others),
            "leaked": float(min(others) < own),
            "scene_error": score(picture, scene.wearing(group), concept).scene_error,
        }
        rows += [Row(STUDY, name, label, step, f"{concept.name}: {prompt}", seed, m, v) for m, v in found.items()]
    return rows
