"""What share of a look a thing wears, against pictures mixed by hand."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from infusion_core.embedded.tinyworld import CONCEPTS, Scene, Thing, render
from infusion_core.embedded.tinyworld.captions import random_look
from infusion_core.embedded.tinyworld.mixture import MEAN_LOOK, look_shares
from infusion_core.embedded.tinyworld.painting import paint, silhouette

EMBER, FLAG = CONCEPTS["ember"], CONCEPTS["flag"]
LOOKS = (EMBER.look, FLAG.look)


def scene(look, other=FLAG.look):
    return Scene((Thing("circle", "small", "left", look), Thing("square", "small", "right", other)), "pink", "plain")


def test_a_thing_wears_its_own_look_or_the_others():
    assert look_shares(render(scene(EMBER.look)), scene(None), "circle", LOOKS) == pytest.approx((1, 0), abs=0.03)
    assert look_shares(render(scene(FLAG.look)), scene(None), "circle", LOOKS) == pytest.approx((0, 1), abs=0.03)


def test_shares_are_those_of_the_mixture():
    own, other = paint(scene(EMBER.look)), paint(scene(FLAG.look))
    inside = silhouette(scene(None).things[0], -2)[..., None] > 0
    mixed = np.where(inside, 0.5 * own + 0.2 * other + 0.3 * MEAN_LOOK, own)
    assert look_shares(mixed, scene(None), "circle", LOOKS) == pytest.approx((0.5, 0.2), abs=0.04)


def test_looks_that_nobody_chose_have_no_share_on_average():
    rng = Random(0)
    shares = [look_shares(render(scene(random_look(rng))), scene(None), "circle", LOOKS) for _ in range(60)]
    spread = np.std(shares, axis=0) / 60**0.5
    assert (np.abs(np.mean(shares, axis=0)) < 3 * spread).all()
    assert spread.max() < 0.06
