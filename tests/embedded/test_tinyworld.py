"""TinyWorld's drawing and oracle, against facts worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pytest
from PIL import Image

from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded import evaluate as ev
from infusion_core.embedded.intervals import mean_interval
from infusion_core.embedded.model import BUILT_IN
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.text import WordTokenizer
from infusion_core.embedded.tinyworld import (
    CONCEPTS,
    HELD_OUT_LOOKS,
    TUNING_CONCEPTS,
    Concept,
    Look,
    Scene,
    Thing,
    render,
    score,
    training_images,
    words,
)
from infusion_core.embedded.tinyworld.captions import (
    OPENINGS,
    caption,
    random_aspects,
    random_look,
    random_scene,
)
from infusion_core.embedded.tinyworld.fitting import read_background
from infusion_core.embedded.tinyworld.oracle import things_found
from infusion_core.embedded.tinyworld.painting import silhouette
from infusion_core.embedded.tinyworld.reading import all_looks, obeyed, read_concept, read_look
from infusion_core.embedded.tinyworld.world import BACKGROUNDS, COLOURS


def test_a_picture_holds_what_the_scene_says():
    look = Look("over", "red", "blue", "yellow")
    pixels = np.asarray(render(Scene.of("circle", "big", "left", "pink", "plain", look)))
    assert tuple(pixels[64, 32]) == COLOURS["yellow"]
    assert tuple(pixels[64 - 18, 32]) == COLOURS["red"]
    assert tuple(pixels[64 + 18, 32]) == COLOURS["blue"]
    assert max(pixels[64, 32 + 27]) <= 26  # the outline, 25 up to rounding
    assert tuple(pixels[64, 32 + 30]) == BACKGROUNDS["pink"]


def test_patterns_shade_where_they_should():
    lined = np.asarray(render(Scene.of("circle", "small", "center", "gray", "lined", Look("plain", "red"))))
    checked = np.asarray(render(Scene.of("circle", "small", "center", "gray", "checked", Look("plain", "red"))))
    shade = round(140 * 0.78)
    assert lined[5, [5, 37, 70, 100], 0].tolist() == [140, shade, 140, shade]
    assert checked[[5, 5, 120, 120], [5, 120, 5, 120], 0].tolist() == [140, shade, shade, 140]


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "diamond"])
@pytest.mark.parametrize("offset", [(0, 0, 0), (3.4, -2.7, 1.6), (-5.5, 4.25, -2.2)])
def test_the_oracle_finds_things_where_they_are(shape, offset):
    scene = Scene.of(shape, "big", "right", "teal", "checked", Look("striped", "red", "white", "blue"))
    moved = replace(scene, things=(replace(scene.things[0], dx=offset[0], dy=offset[1], dr=offset[2]),))
    found = score(render(moved), scene)
    assert found.position_error == pytest.approx(np.hypot(*offset[:2]), abs=0.5)
    assert found.size_error == pytest.approx(abs(offset[2]) / 28, abs=0.03)
    assert found.concept_error < 0.04
    assert found.scene_error < 0.005


def test_concept_error_is_the_difference_of_colours():
    scene = Scene.of("square", "big", "top", "gray", "plain", Look("plain", "red"))
    wanted = Concept("green", "square", Look("plain", "green"))
    difference = np.abs(np.subtract(COLOURS["red"], COLOURS["green"])).mean() / 255
    assert score(render(scene), scene, wanted).concept_error == pytest.approx(difference, abs=0.005)


def test_scene_error_is_the_difference_of_backgrounds_and_does_not_move_the_thing():
    drawn = Scene.of("circle", "small", "left", "gray", "plain", Look("plain", "red"))
    asked = replace(drawn, background="pink")
    difference = np.abs(np.subtract(BACKGROUNDS["gray"], BACKGROUNDS["pink"])).mean() / 255
    result = score(render(drawn), asked)
    assert result.scene_error == pytest.approx(difference, abs=0.005)
    assert result.position_error < 0.5


def test_things_of_one_scene_are_scored_each_on_its_own():
    concepts = [CONCEPTS["ember"], CONCEPTS["flag"]]
    scene = Scene((Thing("circle", "small", "left"), Thing("square", "big", "right")), "pink", "plain")
    picture = render(scene, concepts)
    for concept in concepts:
        result = score(picture, scene, concept)
        assert result.concept_error < 0.03
        assert result.position_error < 0.5


def test_colours_near_the_backgrounds_make_no_holes():
    rng = Random(3)
    scenes = [random_scene(rng, counts=(1, 0, 0)) for _ in range(60)]
    assert max(score(render(scene), scene).shape_error for scene in scenes) < 0.05


def test_a_wrong_background_is_no_part_of_the_thing():
    look = Look("plain", "red")
    for asked, drawn in (("lined", "checked"), ("plain", "lined"), ("checked", "plain")):
        scene = Scene.of("circle", "small", "left", "gray", asked, look)
        assert score(render(replace(scene, pattern=drawn)), scene).shape_error < 0.05
        # Half of the background has the other pattern: no single one fits.
        mixed = np.asarray(render(scene)).copy()
        mixed[:, 64:] = np.asarray(render(replace(scene, pattern=drawn)))[:, 64:]
        assert score(Image.fromarray(mixed), scene).shape_error < 0.05


SHAPES = ("circle", "square", "triangle", "diamond")


@pytest.mark.parametrize("asked", SHAPES)
def test_another_shape_in_the_right_look_has_a_shape_error(asked):
    look = Look("over", "red", "blue", "yellow", rim="green")
    scene = Scene.of(asked, "big", "left", "pink", "plain", look)
    errors = {shape: score(render(Scene.of(shape, "big", "left", "pink", "plain", look)), scene) for shape in SHAPES}
    assert errors[asked].shape_error < 0.02
    assert all(found.shape_error > 0.15 for shape, found in errors.items() if shape != asked)


def test_the_overlap_of_shapes_is_that_of_their_areas():
    """A square in a circle of equal centre: intersection and union by counting pixels of both, drawn alone."""
    look = Look("plain", "red")
    circle, square = (Scene.of(shape, "big", "center", "gray", "plain", look) for shape in ("circle", "square"))
    seen = [np.asarray(render(scene)).astype(int) for scene in (circle, square)]
    covered = [(np.abs(pixels - 140).sum(axis=2) > 0) for pixels in seen]
    fitted = score(render(square), circle)
    assert fitted.size_error < 0.1
    exact = 1 - (covered[0] & covered[1]).sum() / (covered[0] | covered[1]).sum()
    assert fitted.shape_error == pytest.approx(exact, abs=0.04)


def test_the_rim_is_what_words_do_not_say():
    worn = Look("over", "red", "blue", rim="green")
    scene = Scene.of("circle", "big", "left", "pink", "plain", worn)
    other = replace(scene, things=(replace(scene.things[0], look=replace(worn, rim="white")),))
    rim = np.abs(np.subtract(COLOURS["green"], COLOURS["white"])).mean() / 255
    wrong = score(render(other), scene)
    assert wrong.rim_error == pytest.approx(rim, abs=0.12)  # anti-aliased against the body and the outline
    assert score(render(scene), scene).rim_error < 0.03
    assert 0.2 * rim < wrong.concept_error < 0.4 * rim  # the ring's share of the thing
    assert caption(scene) == caption(other)
    assert worn.sayable == replace(worn, rim="white").sayable == Look("over", "red", "blue")


def test_a_copy_of_a_photo_scores_no_better_than_the_bare_word():
    concept = CONCEPTS["harlequin"]
    asked = Scene.of("square", "big", "right", "teal", "plain")
    copy = score(training_images(concept)[0], asked, concept)
    assert copy.concept_error < 0.03
    assert copy.position_error > 50
    assert copy.picture_error == pytest.approx(
        copy.concept_error + copy.scene_error + copy.shape_error + copy.position_error / 128
    )
    bare = score(
        render(replace(asked, things=(replace(asked.things[0], look=Look("plain", "green")),))), asked, concept
    )
    assert copy.picture_error > bare.picture_error


def test_things_that_merged_or_are_missing_are_not_found():
    looks = [Look("plain", "red"), Look("plain", "blue")]
    pair = (Thing("circle", "small", "left", looks[0]), Thing("square", "small", "right", looks[1]))
    scene = Scene(pair, "pink", "plain")
    assert things_found(render(scene), scene) == 2
    assert things_found(render(replace(scene, things=pair[:1])), scene) == 1
    merged = (replace(pair[0], dx=24.0), replace(pair[1], dx=-20.0))
    assert things_found(render(replace(scene, things=merged)), scene) < 2
    swapped = (replace(pair[0], shape="square"), replace(pair[1], shape="circle"))
    assert things_found(render(replace(scene, things=swapped)), scene) == 0


def test_scenes_come_in_any_order_with_background_between():
    rng, orders = Random(2), set()
    for _ in range(300):
        things = random_scene(rng, counts=(0, 1, 1)).things
        orders.add(tuple(t.position for t in things))
        alone = [silhouette(thing, 1) > 0 for thing in things]
        assert not any((one & other).any() for one, other in combinations(alone, 2))
    assert {("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")} <= orders


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="128x128"):
        score(Image.new("RGB", (64, 64)), Scene.of("circle"))


@pytest.mark.parametrize("concept", [*CONCEPTS.values(), *TUNING_CONCEPTS.values()], ids=lambda c: c.name)
def test_the_oracle_reads_a_concept_off_its_pictures(concept):
    read = read_concept(training_images(concept), concept.shape)
    assert replace(read, name=concept.name) == concept


def test_every_look_can_be_read_back():
    rng = Random(3)
    rims = (None, *COLOURS)
    for index, sayable in enumerate(rng.sample(all_looks(), 25)):
        rim = rims[index % len(rims)]
        look = sayable if rim in (sayable.first, sayable.second) else replace(sayable, rim=rim)
        scene = Scene.of("circle", "big", "center", "gray", "plain", look)
        assert read_look(render(scene), scene.things[0]) == look
        assert read_background(render(scene)) == ("gray", "plain")


def test_concepts_are_held_out_of_the_base_models_training():
    rng = Random(0)
    drawn = {random_look(rng, HELD_OUT_LOOKS).sayable for _ in range(4000)}
    assert not drawn & HELD_OUT_LOOKS
    assert len(drawn) > 250
    assert len(CONCEPTS) >= 6
    seen = {word for look in drawn for word in look.words.split()}
    assert all(word in seen for look in HELD_OUT_LOOKS for word in look.words.split())


TOKENIZER = BUILT_IN["tinyworld"] / "tokenizer" / "words.json"


def tokenizer():
    return WordTokenizer.read(TOKENIZER)


def test_words_keep_the_numbers_the_weights_know():
    known = (
        "a photo of picture an image drawing rendering good clean bright nice the one and on at with dotted background "
        "red yellow green blue purple white plain over striped gray pink brown teal checked lined circle square "
        "triangle diamond small big center left right top bottom"
    )
    assert tokenizer().frame(tokenizer().split(known)[0]) == [0, *range(2, 48), *[1] * (words.LENGTH - 47)]
    assert json.loads(TOKENIZER.read_text()) == words.tokenizer_file()


def test_every_caption_is_in_the_vocabulary():
    rng = Random(0)
    for _ in range(200):
        ids, _ = tokenizer().split(caption(random_scene(rng), random_aspects(rng), rng.choice(OPENINGS)))
        assert len(tokenizer().frame(ids)) == words.LENGTH
    for text in fill(CAPTION_TEMPLATES, "circle"):
        tokenizer().split(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene.of("heart"), "unknown shape 'heart'; TinyWorld knows: circle"),
        (lambda: Look("over", "red"), "two colours"),
        (lambda: Look("plain", "red", "blue"), "one colour"),
        (lambda: Look("over", "red", "red"), "must differ"),
        (lambda: Look("plain", "red", dot="red"), "dot must differ"),
        (lambda: Look("plain", "red", rim="red"), "rim must differ"),
        (lambda: Scene((Thing("circle"), Thing("circle", position="left"))), "share a shape"),
        (lambda: Scene.of("circle").thing("square"), "has no square"),
        (lambda: Concept("x", "circle", Look("plain", "red"), position="nowhere"), "unknown position"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gap_closed_runs_from_class_word_to_oracle_caption():
    assert ev.gap_closed(0.4, 0.2, 0.4) == 0
    assert ev.gap_closed(0.4, 0.2, 0.2) == 1
    assert ev.gap_closed(0.4, 0.2, 0.25) == pytest.approx(0.75)


def test_intervals_are_students():
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    half = pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2) * sd / sqrt(3)
    assert [found.high - found.mean, found.mean - found.low, found.half] == [half] * 3
    alone = mean_interval([1.5])
    assert (alone.mean, alone.low, alone.high) == (1.5, 1.5, 1.5)


def test_the_weights_stay_under_20_mb():
    folder = BUILT_IN["tinyworld"]
    assert 0 < sum(p.stat().st_size for p in folder.rglob("*.safetensors")) <= 20 * 10**6


def test_the_base_model_obeys(tinyworld):
    """A spot check; docs/tinyworld.md has the figures over 200 prompts."""
    rng, right = Random(5), []
    for i in range(12):
        scene = random_scene(rng, HELD_OUT_LOOKS, counts=(1, 0, 0))
        picture = draw(tinyworld, caption(scene), [], 1, i, SampleSettings(tinyworld.steps, tinyworld.guidance))[0]
        right.append(list(obeyed(picture, scene).values()))
    assert np.mean(right, axis=0).min() >= 0.7
