"""Pictures of different prompts and concepts in one batch: each is the one that is drawn alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.sampling import Sampler, SampleSettings
from infusion_core.embedded.tasks import Wish, draw, draw_each, picture_of
from infusion_core.schedule import NEVER, Curve, Window

from . import explicit
from .test_streams import PROMPT, Count, concept, relative

PLAIN = "a big diamond at the top"
SHORT, LONG = "a small circle", "a big square and " * 20 + "a circle"  # 77 and 154 tokens


@dataclass
class Row:
    prompt: str
    concepts: tuple[LoadedConcept, ...] = ()
    seed: int = 0
    negative: str = ""


def named(model, word, layout="block", seed=0, strength=1.0, bins=1, **options):
    return LoadedConcept(word, concept(model, word, layout, 0.1, bins, seed), strength, **options)


def mixed(model, rows, settings):
    """Latents of rows in one batch."""
    pictures = [picture_of(model, row.prompt, row.concepts, row.negative) for row in rows]
    sampler = Sampler(model.denoiser, model.scheduler, pictures, settings)
    *_, last = sampler.run(torch.cat([model.noise(1, row.seed) for row in rows]))
    return last.latents


def alone(model, row, settings):
    """Latents of a row by itself."""
    return mixed(model, [row], settings)


def by_hand(model, row, settings):
    """Latents of a row by itself, from attention maps that are computed and copied."""
    encoded = model.text.encode(row.prompt, {c.name: c.residual.word for c in row.concepts})
    with torch.no_grad():
        return explicit.sample(
            model, encoded.conditioning.context, model.text.encode(row.negative).conditioning.context,
            model.noise(1, row.seed), [(c.residual, c.strength) for c in row.concepts], encoded.spans,
            settings.steps, settings.guidance, settings.base_latent, settings.replace_unconditional,
        )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        SampleSettings(2, 3.0),
        SampleSettings(3, 3.0, "own"),  # the base stream's second step is seen in the third
        SampleSettings(2, 3.0, "own", replace_unconditional=True),
    ],
)
@pytest.mark.parametrize("layout", ["block", "layer", "value", "parts"])
def test_each_row_equals_explicit_maps_of_it_alone(tinyworld, settings, layout):
    rows = [
        Row(PROMPT, (named(tinyworld, "circle", layout, 1, 0.7, 2), named(tinyworld, "square", layout, 2, 1.2, 2)), 5),
        Row("a big square", (named(tinyworld, "square", layout, 3, bins=2),), 6, "a small circle"),
        Row(PLAIN, (), 7),
        Row(PROMPT, (named(tinyworld, "circle", layout, 4, 1.5, 2),), 5),
    ]
    drawn = mixed(tinyworld, rows, settings)
    base = mixed(tinyworld, [Row(row.prompt, (), row.seed, row.negative) for row in rows], settings)
    for i in (0, 1, 3):
        assert relative(drawn[i], by_hand(tinyworld, rows[i], settings)[0]) < 5e-5
        assert relative(drawn[i], base[i]) > 1e-3  # the residual did something
    assert relative(drawn[0], drawn[3]) > 1e-3
    assert torch.equal(drawn[2], base[2])


WINDOWS = [
    {"replacement": NEVER},
    {"replacement": Window(0.0, 0.5)},
    {"window": Window(0.5, 1.0)},
    {"replacement": Window(0.5, 1.0), "blocks": {"mid": 0.3}},
    {"curve": Curve(((0.0, 1.0), (1.0, -0.4)))},
    {"strength": 0.0},
]


@pytest.mark.parametrize(
    "settings",
    [
        SampleSettings(4, 3.0),
        SampleSettings(4, 3.0, "own"),
        SampleSettings(4, 3.0, "own", replace_unconditional=True),
        SampleSettings(4, 1.0),
        SampleSettings(4, 1.0, "own"),
    ],
)
def test_rows_of_different_windows_equal_each_alone(tinyworld, settings):
    rows = [Row(PROMPT, (named(tinyworld, "circle", seed=i, **options),), i) for i, options in enumerate(WINDOWS)]
    for some in (rows, rows[:-1]):  # with a row that is the base model's, and without
        drawn = mixed(tinyworld, some, settings)
        for row, latent in zip(some, drawn, strict=True):
            assert relative(latent, alone(tinyworld, row, settings)[0]) < 5e-5


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_rows_without_a_concept_are_the_base_models_to_the_bit(tinyworld, base_latent):
    settings, strong = SampleSettings(3, 4.0, base_latent), named(tinyworld, "circle", strength=3.0)
    early = named(tinyworld, "circle", seed=1, replacement=Window(0.0, 0.5))
    rows = [Row(PLAIN, (strong,), 1), Row(PROMPT, (strong,), 2), Row(PROMPT, (), 2), Row(PROMPT, (early,), 3)]
    drawn = mixed(tinyworld, rows, settings)
    base = mixed(tinyworld, [Row(row.prompt, (), row.seed) for row in rows], settings)
    assert torch.equal(drawn[0], base[0])
    assert torch.equal(drawn[2], base[2])
    assert relative(drawn[1], base[1]) > 1e-3
    assert relative(drawn[3], base[3]) > 1e-3


@pytest.mark.parametrize("layout", ["layer", "value", "parts"])
def test_prompts_of_different_lengths_do_not_change_each_other(tinyworld, layout):
    settings, circle = SampleSettings(2, 3.0), named(tinyworld, "circle", layout)
    rows = [Row(SHORT, (circle,), 1), Row(LONG, (circle,), 2), Row(SHORT, (circle,), 3, LONG), Row(SHORT, (), 1)]
    drawn = mixed(tinyworld, rows, settings)
    for row, latent in zip(rows, drawn, strict=True):
        assert relative(latent, alone(tinyworld, row, settings)[0]) < 5e-5
    assert relative(drawn[0], drawn[3]) > 1e-3


def test_concepts_of_different_layouts_share_a_batch(tinyworld):
    settings = SampleSettings(2, 3.0)
    kinds = [("block", 1), ("layer", 2), ("value", 1), ("parts", 3)]
    rows = [Row(PROMPT, (named(tinyworld, "circle", kind, i, bins=b),), i) for i, (kind, b) in enumerate(kinds)]
    for row, latent in zip(rows, mixed(tinyworld, rows, settings), strict=True):
        assert relative(latent, alone(tinyworld, row, settings)[0]) < 5e-5


@pytest.mark.parametrize(
    ("plain", "base_latent", "rows"),
    [(0, "shared", [3 * 3, 3 * 2 + 2]), (1, "shared", [2 * 4, 3, 2 * 4, 2]), (1, "own", [2 * 4, 2 * 3, 2 * 4, 2 * 2])],
)
def test_cost_in_rows(tinyworld, plain, base_latent, rows):
    """Two halves of each, a third row where maps are replaced; a base model's row keeps others out of its pass."""
    half = named(tinyworld, "circle", replacement=Window(0.0, 0.5))
    whole = named(tinyworld, "circle", seed=1)
    asked = [Row(PROMPT, (half,)), Row(PROMPT, (whole,)), Row(PROMPT, (whole,), 1), *[Row(PLAIN)] * plain]
    count = Count(tinyworld.denoiser.unet)
    try:
        mixed(tinyworld, asked, SampleSettings(2, 4.0, base_latent))
    finally:
        count.handle.remove()
    assert count.rows == rows


def test_wishes_are_drawn_in_their_order_as_each_is_alone(tinyworld):
    settings = SampleSettings(3, 3.0)
    rows = [
        Row(PROMPT, (named(tinyworld, ("circle", "square")[i % 2], seed=i),), 10 + i, ("", "a circle")[i == 2])
        for i in range(5)
    ]
    wishes = [Wish(picture_of(tinyworld, row.prompt, row.concepts, row.negative), row.seed) for row in rows]
    steps = []
    drawn = draw_each(tinyworld, wishes, settings, 2, lambda step: steps.append(len(step.latents)))
    assert steps == [2] * 6 + [1] * 3
    for row, picture in zip(rows, drawn, strict=True):
        (single,) = draw(tinyworld, row.prompt, row.concepts, 1, row.seed, settings, row.negative)
        difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(single, dtype=int))
        assert difference.max() <= 1  # a rounded number may fall on the other side
    assert len({picture.tobytes() for picture in drawn}) == 5
    assert draw_each(tinyworld, [], settings) == []


def test_several_prompts_need_as_many_pictures(tinyworld):
    pictures = [picture_of(tinyworld, PLAIN)] * 2
    sampler = Sampler(tinyworld.denoiser, tinyworld.scheduler, pictures, SampleSettings(1, 4.0))
    with pytest.raises(ValueError, match="3 pictures cannot be drawn of 2 prompts"):
        next(sampler.run(tinyworld.noise(3, 0)))
