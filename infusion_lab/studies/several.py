"""Study: two and three concepts in one prompt, and how much of each leaks into the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from statistics import fmean

from PIL import Image

from infusion_core.embedded.tinyworld import CONCEPTS, Concept, score
from infusion_core.embedded.tinyworld.captions import SPREADS, UNSEEN_ASPECTS, caption
from infusion_core.embedded.tinyworld.mixture import look_shares
from infusion_core.embedded.tinyworld.oracle import things_found
from infusion_core.embedded.tinyworld.world import BACKGROUNDS, PATTERNS, Scene, Thing

from ..bench import Bench
from ..measures import CLASS_WORD, LOOK_IN_WORDS
from ..methods.method import Customised, Method
from ..store import Cell, Result, Row

STUDY = "several"
JOIN = "+"  # between names of a group
TOGETHER = ("apt", "infusion")  # one of a pair of concepts as weights, the other as residuals
SHOWN = 2  # pictures kept for the report
LEARNED = 0.25  # share of their own looks that things must wear before what leaked is held against it


def cells(bench: Bench) -> list[Cell]:
    """Per group of concepts one cell for each yardstick and each method, and per pair one for two methods together."""
    out, methods = [], {method.key: method for method in bench.methods}
    for names in bench.scale.groups:
        group, label = [CONCEPTS[name] for name in names], JOIN.join(names)
        depends = group, scenes_of(group, bench.scale.group_prompts), bench.amounts("seeds")
        for name in (CLASS_WORD, LOOK_IN_WORDS):
            out.append(bench.cell(STUDY, name, label, partial(_yardstick, bench, name, group), *depends))
        for method in methods.values():
            compute, source = partial(_method, bench, method, group), bench.own_source(method, group)
            out.append(bench.cell(STUDY, method.key, label, compute, *depends, source))
        if len(group) == len(TOGETHER) and {*TOGETHER} <= methods.keys():
            pairs = [(methods[key], [concept]) for key, concept in zip(TOGETHER, group, strict=True)]
            compute, sources = partial(_together, bench, pairs), [bench.own_source(*pair) for pair in pairs]
            out.append(bench.cell(STUDY, JOIN.join(TOGETHER), label, compute, *depends, *sources))
    return out


def size(label: str) -> int:
    """How many concepts a cell or row of this study has, by its ``concept``."""
    return len(label.split(JOIN))


def scenes_of(group: Sequence[Concept], count: int) -> list[Scene]:
    """Scenes that hold one thing of each concept's shape, named in any order, in any place."""
    rng = Random("several " + " ".join(c.name for c in group))
    out = []
    for _ in range(count):
        ordered, places = rng.sample(group, len(group)), rng.sample(rng.choice(SPREADS[len(group)]), len(group))
        things = tuple(Thing(c.shape, "small", place) for c, place in zip(ordered, places, strict=True))
        out.append(Scene(things, rng.choice(tuple(BACKGROUNDS)), rng.choice(PATTERNS)))
    return out


def _yardstick(bench: Bench, name: str, group: list[Concept]) -> Result:
    shapes = tuple(c.shape for c in group)
    return _measure(bench, name, group, 0, Customised(bench.studio.base, shapes))


def _method(bench: Bench, method: Method, group: list[Concept]) -> Result:
    learned, _ = bench.learned(method, group)
    return _measure(bench, method.key, group, bench.steps(method), method.apply(bench.studio, learned))


def _together(bench: Bench, pairs: Sequence[tuple[Method, list[Concept]]]) -> Result:
    """One concept as weights, another as residuals beside them."""
    (weights, _), (ours, _) = pairs
    first, second = ([*bench.learned(*pair)[0]] for pair in pairs)
    whole, residuals = weights.apply(bench.studio, first), ours.apply(bench.studio, second)
    both = replace(residuals, model=whole.model, phrases=(*whole.phrases, *residuals.phrases))
    group = [concept for _, concepts in pairs for concept in concepts]
    return _measure(bench, JOIN.join(TOGETHER), group, bench.steps(weights), both)


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
    label, dressed = JOIN.join(c.name for c in group), scene.wearing(group)
    missing = 1 - things_found(picture, dressed) / len(group)
    for concept in group:
        others = [c.look for c in group if c != concept]
        own_share, *other_shares = look_shares(picture, dressed, concept.shape, [concept.look, *others])
        scored = score(picture, dressed, concept)
        found = {
            "own_error": scored.concept_error,
            "own_share": own_share,
            "other_share": fmean(other_shares),  # the largest of several would be above 0 where nobody chose a look
            "missing": missing,
            "scene_error": scored.scene_error,
        }
        rows += [Row(STUDY, name, label, step, f"{concept.name}: {prompt}", seed, m, v) for m, v in found.items()]
    return rows
