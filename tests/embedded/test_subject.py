"""Captions and masks that lie beside photos: how they are read, and what training makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from infusion_core.captions import CAPTION_TEMPLATES, fill, said_of
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.subject import SubjectPhotos, load_subject
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.training.apt import AptSettings
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.shown import captions_in_turn, require_said

EDGE = 64


def picture(shade, size=(EDGE, EDGE)):
    return Image.new("RGB", size, (shade, 90, 200 - shade))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "photos"
    made.mkdir()
    for index, name in enumerate(("a.png", "b.jpg", "c.png")):
        picture(60 * index).save(made / name)
    (made / "a.txt").write_text("\ufeffa {} on pink\n\n  the big Circle \n", encoding="utf-8")
    (made / "notes.txt").write_text("of no photo")
    return made


def left_half(size=(EDGE, EDGE)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_captions_are_the_lines_of_a_text_of_the_photos_name(folder):
    skipped = []
    photos = load_subject(folder, EDGE, skipped)
    assert photos.names == ("a.png", "b.jpg", "c.png")
    assert photos.captions == (("a {} on pink", "the big Circle"), (), ())
    assert [file.name for file in skipped] == ["notes.txt"]
    every, said = said_of(photos.captions, photos.names, fill(("a photo of a {}", "one {}"), "circle"), "circle")
    assert every == ["a circle on pink", "the big Circle", "a photo of a circle", "one circle"]
    assert said == [[0, 1], [2, 3], [2, 3]]
    assert said_of([()], ["a"], ("one circle",), "circle") == (["one circle"], None)


def test_a_caption_without_the_word_is_named(folder):
    (folder / "b.txt").write_text("a dog on the beach")
    photos = load_subject(folder, EDGE, [])
    with pytest.raises(
        InfusionError, match=r"a caption of b\.jpg, 'a dog on the beach', says neither \{\} nor 'circle'"
    ):
        said_of(photos.captions, photos.names, ("a circle",), "circle")
    every, said = said_of(photos.captions, photos.names, ("a circle",), "circle", needed=False)
    assert said[1] == [every.index("a dog on the beach")]


@pytest.mark.parametrize(("data", "why"), [(b"\xff\xfe\xff", "cannot be read"), (b"a" * 200_000, "is no caption")])
def test_a_caption_that_is_no_text_is_refused(folder, data, why):
    (folder / "a.txt").write_bytes(data)
    with pytest.raises(InfusionError, match=why):
        load_subject(folder, EDGE, [])


def test_masks_lie_beside_photos_or_in_a_folder_and_are_no_photos(folder, tmp_path):
    left_half().save(folder / "a-masklabel.png")
    left_half((32, 32)).save(folder / "b.mask.png")
    others = tmp_path / "masks"
    others.mkdir()
    Image.new("L", (EDGE, EDGE), 255).save(others / "a.png")
    photos = load_subject(folder, EDGE, [])
    assert len(photos.pictures) == 3
    for mask in photos.masks[:2]:
        shades = np.asarray(mask)
        assert shades.shape == (EDGE, EDGE)
        assert (shades[:, : EDGE // 2 - 2] == 255).all()
        assert (shades[:, EDGE // 2 + 2 :] == 0).all()
    assert photos.masks[2] is None
    assert (np.asarray(load_subject(folder, EDGE, [], others).masks[0]) == 255).all()
    (others / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(InfusionError, match=r"the mask .*c\.png cannot be used: damaged"):
        load_subject(folder, EDGE, [], others)


def test_no_photo_is_its_own_mask(folder):
    """The masks' folder is that of the photos: a photo has its own name there too."""
    left_half().save(folder / "a-masklabel.png")
    photos = load_subject(folder, EDGE, [], folder)
    assert [mask is not None for mask in photos.masks] == [True, False, False]
    assert (np.asarray(photos.masks[0])[:, : EDGE // 2 - 2] == 255).all()
    (folder / "a-masklabel.png").unlink()
    with pytest.raises(InfusionError, match="holds no mask of any photo"):
        load_subject(folder, EDGE, [], folder)


def test_what_is_neither_a_photo_nor_a_mask_of_one_is_named(folder):
    left_half().save(folder / "a-masklabel.webp")
    left_half().save(folder / "venetian.mask.png")
    picture(7).save(folder / "cat.overfitting.png")
    skipped = []
    photos = load_subject(folder, EDGE, skipped)
    assert photos.names == ("a.png", "b.jpg", "c.png")
    assert photos.masks == (None, None, None)
    told = {file.name: file.why for file in skipped}
    assert told.pop("cat.overfitting.png") == "a chart of an earlier run"
    assert told.keys() == {"notes.txt", "a-masklabel.webp", "venetian.mask.png"}
    assert "a mask has its photo's name" in told["a-masklabel.webp"]


def test_a_folder_of_masks_that_belong_to_no_photo_is_refused(folder, tmp_path):
    with pytest.raises(InfusionError, match=r"gone is no folder; give the folder of the photos' masks \(--masks\)"):
        load_subject(folder, EDGE, [], tmp_path / "gone")
    others = tmp_path / "masks"
    others.mkdir()
    left_half().save(others / "z.png")
    with pytest.raises(InfusionError, match=r"masks holds no mask of any photo; call each as .*, such as a\.png"):
        load_subject(folder, EDGE, [], others)


def test_a_mask_is_cut_as_its_photo_is(tmp_path):
    """A photo six times as wide as the edge, whose middle square is kept; so is the middle of the mask."""
    wide = Image.new("RGB", (6 * EDGE, 3 * EDGE), "white")
    wide.paste("red", (2 * EDGE, 0, 3 * EDGE, 3 * EDGE))
    mask = Image.new("L", wide.size, 0)
    mask.paste(255, (2 * EDGE, 0, 3 * EDGE, 3 * EDGE))
    wide.save(tmp_path / "a.png")
    mask.save(tmp_path / "a.mask.png")
    photos = load_subject(tmp_path, EDGE, [])
    red = np.asarray(photos.pictures[0])[..., 1] < 60
    assert photos.pictures[0].size == photos.masks[0].size == (EDGE, EDGE)
    assert (red == (np.asarray(photos.masks[0]) > 200)).mean() > 0.97


def cut_out(folder, name, mask, colour=(200, 30, 30)):
    """A photo that is seen where a mask is white."""
    photo = Image.new("RGB", mask.size, colour)
    photo.putalpha(mask)
    photo.save(folder / name)


def test_transparency_is_the_mask_where_there_is_no_other(folder):
    cut_out(folder, "c.png", left_half())
    cut_out(folder, "d.png", Image.new("L", (EDGE, EDGE), 254))  # as some tools save what is opaque
    cut_out(folder, "e.png", left_half(), (1, 2, 3))
    Image.new("L", (EDGE, EDGE), 255).save(folder / "e.mask.png")
    photos = load_subject(folder, EDGE, [])
    assert photos.cut_out == ("c.png",)
    assert [mask is not None for mask in photos.masks] == [False, False, True, False, True]
    assert photos.masks[2].tobytes() == left_half().tobytes()
    assert np.asarray(photos.masks[4]).min() == 255  # what lies beside it counts more
    assert photos.with_mirrored().masks[7].tobytes() == left_half().transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    assert photos.pictures[2].getpixel((EDGE - 1, 0)) == (255, 255, 255)
    off = load_subject(folder, EDGE, [], transparency=False)
    assert off.cut_out == ()
    assert [mask is not None for mask in off.masks] == [False, False, False, False, True]
    assert [p.tobytes() for p in off.pictures] == [p.tobytes() for p in photos.pictures]


def test_a_photo_of_which_almost_nothing_is_seen_is_refused_by_name(folder):
    dot = Image.new("L", (EDGE, EDGE), 0)
    dot.paste(255, (0, 0, 4, 4))  # 0.39%
    cut_out(folder, "c.png", dot)
    with pytest.raises(InfusionError, match=r"c\.png is almost wholly transparent \(0\.39% of it is seen\); save"):
        load_subject(folder, EDGE, [])
    assert load_subject(folder, EDGE, [], transparency=False).masks == (None,) * 3


SETTINGS = ResidualSettings(steps=1, batch_size=16, snapshot_every=1)


def looks(trainer, count=4):
    objective = trainer.objective
    return [objective.look(torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_every_photo_is_shown_with_its_own_captions_alone(folder, tinyworld):
    photos = load_subject(folder, EDGE, [])
    trainer = trainer_for(tinyworld, photos, "circle", SETTINGS, ("a photo of a {}", "a {}"))
    own = {tuple(p.conditioning.context.flatten()[:500].tolist()) for p in trainer.objective.prompts[:2]}
    first = trainer.objective.shown.latents[0, 0]
    shown = []
    for look in looks(trainer):
        sigma = look.noised.sigma.reshape(-1, 1, 1, 1)
        for row, prompt in enumerate(look.prompts):
            caption = tuple(prompt.conditioning.context.flatten()[:500].tolist())
            clean = look.noised.latents[row] - sigma[row] * look.noised.wanted[row]
            shown.append((bool((clean - first).abs().max() < 1e-3), caption in own, caption))
    assert {(is_first, is_own) for is_first, is_own, _ in shown} == {(True, True), (False, False)}
    assert len({caption for is_first, _, caption in shown if is_first}) == 2
    assert trainer.validation_loss() > 0


def test_captions_take_turns_within_each_photo():
    pictures, turns = torch.tensor([0, 1, 0, 1, 0]), torch.arange(5)
    assert captions_in_turn([[0, 3], [2]], pictures, turns, 4).tolist() == [0, 2, 0, 2, 0]
    assert captions_in_turn([[0, 3], [2]], pictures, turns + 1, 4).tolist() == [3, 2, 3, 2, 3]
    assert captions_in_turn(None, pictures, turns, 4).tolist() == [0, 1, 2, 3, 0]
    with pytest.raises(InfusionError, match="1 sets of captions for 2 photos"):
        require_said([[0]], 2, 4)
    with pytest.raises(InfusionError, match="at least one caption"):
        require_said([[0], []], 2, 4)


def test_photos_of_the_longest_names_may_have_something_beside_them_or_not(tmp_path):
    for shade, name in enumerate(("x" * 251 + ".png", "猫" * 82 + ".png", "y" * 255)):
        picture(shade).save(tmp_path / name, format="PNG")
    masks = tmp_path / "masks"
    masks.mkdir()
    left_half().save(masks / f"{'x' * 251}.png")
    photos = load_subject(tmp_path, EDGE, [], masks=masks)
    assert [mask is not None for mask in photos.masks] == [True, False, False]
    assert photos.captions == ((), (), ())


def test_photos_without_anything_beside_them_are_trained_on_as_ever(tinyworld):
    pictures = [picture(10), picture(99)]
    plain, known = (trainer_for(tinyworld, p, "circle", SETTINGS) for p in (pictures, SubjectPhotos.of(pictures)))
    for one, other in zip(looks(plain), looks(known), strict=True):
        assert torch.equal(one.noised.latents, other.noised.latents)
        assert all(torch.equal(a.conditioning.context, b.conditioning.context) for a, b in
                   zip(one.prompts, other.prompts, strict=True))  # fmt: skip


@pytest.mark.parametrize("augmented", [False, True])
def test_what_a_mask_leaves_out_has_no_part_in_the_loss(tinyworld, augmented):
    photos = SubjectPhotos((picture(10), picture(99)), ((), ()), (left_half(), None), ("a", "b"))
    how = ResidualSettings(steps=1, batch_size=2, restraint=RESTRAINED) if augmented else SETTINGS
    masks = trainer_for(tinyworld, photos, "circle", how).objective.shown.masks
    half = masks.shape[-1] // 2
    assert masks[0, 0, 0, :, half + 1 :].max() < 0.01
    assert masks[0, 0].mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.allclose(masks[1, 0], torch.ones_like(masks[1, 0]))
    empty = SubjectPhotos((picture(10),), ((),), (Image.new("L", (EDGE, EDGE), 0),), ("a",))
    with pytest.raises(InfusionError, match="the mask of a is empty"):
        trainer_for(tinyworld, empty, "circle", how)


def test_a_lora_learns_from_captions_and_masks_too(folder, tinyworld):
    left_half().save(folder / "a-masklabel.png")
    (folder / "c.txt").write_text("a square at left")
    photos = load_subject(folder, EDGE, [])
    captions = fill(CAPTION_TEMPLATES[:2], "big circle")
    trainer = apt_trainer(tinyworld, photos, captions, AptSettings(steps=1), phrase="big circle")
    shown = trainer.objective.shown
    assert shown.said == [[0, 1], [2, 3], [4]]
    assert shown.masks is not None
    wanted = tinyworld.text.encode("a big circle on pink").conditioning.context
    assert torch.equal(shown.captions([0]).context, wanted)


def test_mirrored_photos_have_mirrored_masks_and_the_same_captions(folder, tinyworld):
    half = Image.new("RGB", (EDGE, EDGE), "white")
    half.paste("red", (0, 0, EDGE // 2, EDGE))
    photos = SubjectPhotos((half,), (("a {} on pink",),), (left_half(),), ("a",)).with_mirrored()
    first, second = (np.asarray(picture).astype(int) for picture in photos.pictures)
    assert (second == first[:, ::-1]).all()
    assert not (second == first).all()
    assert (np.asarray(photos.masks[1]) == np.asarray(photos.masks[0])[:, ::-1]).all()
    trainer = trainer_for(tinyworld, photos, "circle", SETTINGS)
    assert len(trainer.objective.shown.latents) == 2
    assert len(trainer.objective.prompts) == 1
    assert SubjectPhotos.of([half]).with_mirrored().masks == (None, None)
