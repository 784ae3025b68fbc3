"""Photos that keep their shape, from the files to what the network is shown of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.model import load_model
from infusion_core.embedded.subject import SubjectPhotos, load_subject
from infusion_core.embedded.tasks import trainer_for
from infusion_core.training.apt import AptSettings
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.shapes import ShapedObjective

from .factories import save_model

SETTINGS = ResidualSettings(steps=2, batch_size=2, snapshot_every=2, validation_draws=3)
SIZES = ((256, 128), (128, 128), (128, 300), (512, 250))  # wide, square, high, wide
EXPECTED = ((176, 80), (128, 128), (80, 192), (176, 80))  # of at most 16384 px, edges a multiple of 16


def photo(size, seed):
    shades = np.random.default_rng(seed).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC)


def middle(picture, size):
    """The largest middle part of a picture in a shape, in another way than ours: cut by whole pixels, then scaled."""
    factor = min(picture.width / size[0], picture.height / size[1])
    wide, high = size[0] * factor, size[1] * factor
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    return picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high))


@pytest.fixture
def photos():
    pictures = tuple(photo(size, seed) for seed, size in enumerate(SIZES))
    mask = Image.new("L", SIZES[2], 0)
    mask.paste(255, (0, 0, SIZES[2][0], SIZES[2][1] // 2))
    captions = ((), (), ("a big {}",), ())
    return SubjectPhotos(pictures, captions, (None, None, mask, None), ("a", "b", "c", "d"))


def members(trainer):
    assert isinstance(trainer.objective, ShapedObjective)
    return trainer.objective.members


@pytest.mark.parametrize("flip", [False, True])
def test_each_photo_is_whole_in_a_batch_of_its_shape(tinyworld, photos, flip):
    given = photos.with_mirrored() if flip else photos
    trainer = trainer_for(tinyworld, given, "circle", SETTINGS, ("a {}",), aspect=True)
    shown = {tuple(m.shown.latents.shape[-2:]): m for m in members(trainer)}
    assert set(shown) == {(h // 8, w // 8) for w, h in EXPECTED}
    found = dict.fromkeys(shown, 0)
    for number, picture in enumerate(given.pictures):
        width, height = EXPECTED[number % 4]
        pixels = torch.from_numpy(np.asarray(middle(picture, (width, height)), dtype=np.float32)).permute(2, 0, 1)
        wanted = tinyworld.encode_pixels(pixels[None] / 127.5 - 1)[0]
        size = (height // 8, width // 8)
        torch.testing.assert_close(shown[size].shown.latents[found[size], 0], wanted, rtol=0, atol=0.02)
        found[size] += 1
    assert [len(m.shown.latents) for m in shown.values()] == list(found.values())


def test_masks_and_captions_stay_with_their_photos(tinyworld, photos):
    trainer = trainer_for(tinyworld, photos, "circle", SETTINGS, ("a {}", "one {}"), aspect=True)
    wide, square, high = members(trainer)
    assert high.shown.masks.shape == (1, 1, 1, 24, 10)
    assert high.shown.masks[0, 0, 0, 14:].max() < 1e-3
    assert high.shown.masks.mean().item() == pytest.approx(1, abs=1e-4)
    assert wide.shown.masks is None
    assert square.shown.masks is None
    assert [m.shown.said for m in (wide, square, high)] == [[[0, 1], [0, 1]], [[0, 1]], [[2]]]
    big = tinyworld.text.encode("a big circle").conditioning.context
    assert torch.equal(high.prompts[2].conditioning.context, big)


@pytest.mark.parametrize("augmented", [False, True])
def test_square_photos_are_trained_on_as_ever_bit_by_bit(tinyworld, augmented):
    pictures = [photo((128, 128), 4), photo((300, 300), 5)]
    how = replace(SETTINGS, restraint=RESTRAINED) if augmented else SETTINGS
    plain, kept = (trainer_for(tinyworld, pictures, "circle", how, aspect=aspect) for aspect in (False, True))
    assert not isinstance(kept.objective, ShapedObjective)
    assert [report.loss for report in plain.run()] == [report.loss for report in kept.run()]
    assert all(torch.equal(kept.learned().tensors[k], v) for k, v in plain.learned().tensors.items())


def test_variants_keep_the_shape_too_and_a_resumed_run_repeats(tinyworld, photos):
    how = replace(SETTINGS, steps=4, restraint=RESTRAINED)

    def trainer(state=None):
        return trainer_for(tinyworld, photos, "circle", how, ("a {}",), state=state, aspect=True)

    whole, first = trainer(), trainer()
    losses = [report.loss for report in whole.run()]
    assert all(m.shown.latents.shape[1] == 13 for m in members(whole))
    for report in first.run():
        if report.step == 2:
            break
    again = trainer(first.state())
    assert [report.loss for report in again.run()] == losses[2:]
    assert all(torch.equal(again.learned().tensors[k], v) for k, v in whole.learned().tensors.items())


@pytest.mark.parametrize("live", [False, True])
def test_a_model_that_is_told_sizes_is_told_the_true_ones(tmp_path, photos, live):
    model = load_model(str(save_model(tmp_path / "sdxl", "sdxl", 64)), "cpu")
    settings = AptSettings(steps=1, batch_size=1, rank=2, text_rate=0.5 if live else 0.0)
    trainer = apt_trainer(model, photos, ["a dog"], settings, aspect=True)
    sizes = set()
    for member in members(trainer):
        height, width = (4 * edge for edge in member.shown.latents.shape[-2:])
        told = member.shown.captions([0]).extras["time_ids"]
        assert told.tolist() == [[height, width, 0, 0, height, width]]
        sizes.add((width, height))
    assert sizes == {(48, 16), (32, 32), (16, 48)}
    with trainer.objective.members[0].lora.installed():
        assert all(report.loss > 0 for report in trainer.run())
    word = trainer_for(model, photos, "dog", SETTINGS, ("a {}",), aspect=True)
    for member in members(word):
        height, width = (4 * edge for edge in member.shown.latents.shape[-2:])
        assert all(p.conditioning.extras["time_ids"][0, 0] == height for p in member.prompts)
        assert all(p.conditioning.extras["time_ids"][0, 5] == width for p in member.prompts)


def test_a_folder_gives_whole_photos_where_they_keep_their_shape(tmp_path):
    wide = photo((600, 200), 9)
    wide.save(tmp_path / "a.png")
    Image.new("L", (600, 200), 255).save(tmp_path / "a.mask.png")
    kept, cut = (load_subject(tmp_path, 64, [], aspect=aspect) for aspect in (True, False))
    assert kept.pictures[0].size == kept.masks[0].size == (200 * 3, 200)
    assert cut.pictures[0].size == cut.masks[0].size == (64, 64)
