"""Concepts together: of a look that nobody chose a thing wears nothing on average, whether there is one or several."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import fmean

import pytest

from infusion_core.embedded.tinyworld import CONCEPTS, HELD_OUT_LOOKS, render
from infusion_core.embedded.tinyworld.captions import random_scene
from infusion_lab.studies.several import _rows, scenes_of


@pytest.mark.parametrize("names", [("ember", "flag"), ("ember", "harlequin", "tent")])
def test_nobody_leaks_in_pictures_of_random_looks(names):
    group, rng, rows = [CONCEPTS[name] for name in names], Random(0), []
    for scene in scenes_of(group, 30):
        looks = [random_scene(rng, HELD_OUT_LOOKS).things[0].look for _ in scene.things]
        things = tuple(replace(thing, look=look) for thing, look in zip(scene.things, looks, strict=True))
        rows += _rows("nobody", group, 0, "", 0, render(replace(scene, things=things)), scene)
    shares = {name: fmean(row.value for row in rows if row.measure == name) for name in ("own_share", "other_share")}
    assert shares == pytest.approx({"own_share": 0, "other_share": 0}, abs=0.08)


def test_a_look_that_went_to_another_thing_is_seen():
    group = [CONCEPTS["ember"], CONCEPTS["flag"]]
    (scene,) = scenes_of(group, 1)
    swapped = {group[0].shape: group[1].look, group[1].shape: group[0].look}
    things = tuple(replace(thing, look=swapped[thing.shape]) for thing in scene.things)
    rows = _rows("swapped", group, 0, "", 0, render(replace(scene, things=things)), scene)
    assert fmean(row.value for row in rows if row.measure == "other_share") > 0.9
    assert fmean(row.value for row in rows if row.measure == "own_share") < 0.1
