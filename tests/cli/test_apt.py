"""The command `apt` as a user runs it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open

from infusion_cli import apt
from infusion_cli.apt import AptRequest, run_apt
from infusion_core.embedded.adapters import load_variant
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS, training_images
from infusion_core.errors import InfusionError
from infusion_core.training.apt import AptSettings
from infusion_core.training.overfitting import Restraint

from .test_cli import infusion

SETTINGS = AptSettings(
    steps=4,
    batch_size=2,
    rank=2,
    snapshot_every=2,
    learning_rate=1e-2,
    restraint=Restraint(augment=True, reweight=True, bins=3),
)
CONCEPT = TUNING_CONCEPTS["acorn"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, picture in enumerate(training_images(CONCEPT)[:2]):
        picture.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    """TinyWorld by another name, so that no oracle takes its time."""
    return replace(load_model("tinyworld"), name="toy")


@pytest.fixture
def request_(tmp_path, photos):
    return AptRequest("toy", photos, CONCEPT.shape, "", tmp_path / "out" / "acorn.safetensors", SETTINGS)


def tensors(path):
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def test_the_command_leaves_a_lora_that_draws_what_was_scored(photos, tmp_path):
    out = tmp_path / "acorn.safetensors"
    done = infusion("apt", "--images", photos, "--word", CONCEPT.shape, "--out", out, "--steps", 3, "--batch-size", 2,
                    "--rank", 3, "--alpha", 6, "--snapshot-every", 2, "--temperature", 100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "acorn.report.json").read_text())
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["concept_error"] > 0
    assert report["oracle_caption_concept_error"] < report["base_concept_error"]
    assert report["lora_file_bytes"] == out.stat().st_size
    assert [step for step, _ in report["indicator"]] == [1, 2, 3]
    assert all(len(gamma) == 10 for _, gamma in report["indicator"])
    assert report["settings"]["restraint"]["temperature"] == 100
    assert [Path(snapshot["file"]).name for snapshot in report["snapshots"]] == [
        "step-00002.safetensors",
        "step-00003.safetensors",
    ]
    with Image.open(tmp_path / "acorn.overfitting.png") as curve:
        assert curve.width > 300
    held, metadata = tensors(out)
    assert metadata["ss_network_dim"] == "3"
    assert metadata["ss_network_alpha"] == "6"
    assert metadata["modelspec.trigger_phrase"] == CONCEPT.shape
    assert metadata["ss_steps"] == "3"
    assert {float(tensor) for name, tensor in held.items() if name.endswith(".alpha")} == {6.0}

    drawn = infusion("generate", "--lora", f"{out}:0.5", "--prompt", f"a {CONCEPT.shape}", "--count", 1, "--steps", 2,
                     "--out", tmp_path / "drawn")  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    base = load_model("tinyworld")
    late = load_variant(f"{out}:0.5", base)
    (expected,) = draw(late, f"a {CONCEPT.shape}", (), 1, 0, SampleSettings(2, base.guidance))
    with Image.open(tmp_path / "drawn" / "00000.png") as picture:
        assert picture.tobytes() == expected.tobytes()
    assert json.loads((tmp_path / "drawn" / "report.json").read_text())["loras"] == [f"{out}:0.5"]


def test_an_interrupted_run_goes_on_to_the_same_file(request_, model, monkeypatch, tmp_path):
    run_apt(request_, model)
    whole = request_.out.read_bytes()
    other = replace(request_, out=tmp_path / "other" / "acorn.safetensors")

    class StoppedError(Exception):
        pass

    from infusion_cli import course

    snapshot = course.Course.snapshot

    def stop(self):
        snapshot(self)
        raise StoppedError

    monkeypatch.setattr(course.Course, "snapshot", stop)
    with pytest.raises(StoppedError):
        run_apt(other, model)
    assert not other.out.exists()
    monkeypatch.undo()
    began, begin = [], course.Course.begin

    def noted(self, state):
        began.append(self.trainer.step)
        begin(self, state)

    monkeypatch.setattr(course.Course, "begin", noted)
    report = run_apt(replace(other, resume=True), model)
    assert began == [2]  # from the start it would end in the same bytes
    assert other.out.read_bytes() == whole
    assert [step for step, _ in report["indicator"]] == [1, 2, 3, 4]
    assert len(report["losses"]) == 4
    with pytest.raises(InfusionError, match="rank was 2"):
        run_apt(replace(other, resume=True, settings=replace(SETTINGS, rank=3)), model)
    with pytest.raises(InfusionError, match="alignment was"):
        run_apt(replace(other, resume=True, settings=SETTINGS.unrestrained), model)


def test_a_run_ends_when_the_photos_are_known_by_heart(request_, model, capsys):
    settings = replace(SETTINGS, restraint=replace(SETTINGS.restraint, temperature=1e6), steps=40)
    report = run_apt(replace(request_, settings=settings, stop_at=0.2), model)
    steps = len(report["losses"])
    assert steps < 40
    means = [sum(gamma) / len(gamma) for _, gamma in report["indicator"]]
    assert means[-1] >= 0.2
    assert all(mean < 0.2 for mean in means[:-1])
    said = capsys.readouterr().out
    assert "Training takes about 0." in said
    assert f"Ended at step {steps} of 40" in said
    assert tensors(request_.out)[1]["ss_steps"] == str(steps)
    with pytest.raises(InfusionError, match="not measured"):
        run_apt(replace(request_, settings=SETTINGS.unrestrained, stop_at=0.2), model)


def test_captions_and_masks_belong_to_what_a_run_was_given(request_, model, photos, tmp_path):
    folder = tmp_path / "with"
    shutil.copytree(photos, folder)
    asked = replace(request_, images=folder)
    run_apt(asked, model)
    (folder / "0.txt").write_text("a {} on the beach")
    with pytest.raises(InfusionError, match="the photos' own captions were others"):
        run_apt(replace(asked, resume=True), model)
    (folder / "0.txt").unlink()
    Image.new("L", (64, 64), 255).save(folder / "0.mask.png")
    with pytest.raises(InfusionError, match="the masks were others"):
        run_apt(replace(asked, resume=True), model)
    (folder / "0.mask.png").unlink()
    run_apt(replace(asked, resume=True), model)


def test_without_restraint_nothing_is_measured(request_, model):
    plain = replace(request_, settings=replace(SETTINGS.unrestrained, steps=2))
    report = run_apt(plain, model)
    assert "indicator" not in report
    assert not plain.out.with_suffix(".overfitting.png").exists()


def test_pictures_of_the_class_are_drawn_where_they_are_missing(request_, model, tmp_path):
    prior = tmp_path / "class"
    asked = replace(request_, settings=replace(SETTINGS, steps=1), prior=prior, prior_count=2)
    run_apt(asked, model)
    first = {path.name: path.read_bytes() for path in prior.iterdir()}
    assert first.keys() == {"00000.png", "00001.png"}
    run_apt(replace(asked, prior_count=3), model)
    assert len(list(prior.iterdir())) == 3
    assert all((prior / name).read_bytes() == data for name, data in first.items())
    (prior / "00002.png").unlink()
    with pytest.raises(InfusionError, match="there were 3 class pictures, not 2"):
        run_apt(replace(asked, prior_count=0, resume=True), model)


def test_pictures_of_the_class_that_were_drawn_outlast_an_interruption(request_, model, tmp_path, monkeypatch):
    drawn, draw = [], apt.draw_each

    def stopped(*args, **kwargs):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    prior = tmp_path / "class"
    asked = replace(request_, settings=replace(SETTINGS, steps=1), prior=prior, prior_count=3)
    monkeypatch.setattr(apt, "AT_ONCE", 1)
    monkeypatch.setattr(apt, "draw_each", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_apt(asked, replace(model, steps=2))
    assert sorted(path.name for path in prior.iterdir()) == ["00000.png", "00001.png"]
    drawn.clear()
    run_apt(asked, replace(model, steps=2))
    assert len(drawn) == 1


def test_a_folder_of_the_class_may_hold_more_than_one_of_a_subject(request_, model, tmp_path, capsys):
    prior = tmp_path / "class"
    prior.mkdir()
    for number in range(201):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(prior / f"{number}.png")
    (prior / "notes.txt").write_text("no picture")
    run_apt(replace(request_, settings=replace(SETTINGS, steps=1), prior=prior), model)
    assert "Skipped notes.txt" in capsys.readouterr().out
    with pytest.raises(InfusionError, match=r"more than 200 files; name a folder with 3-6 photos .*\(--images\)"):
        run_apt(replace(request_, images=prior), model)


def test_pictures_of_the_class_that_are_the_users_own_stay(request_, model, tmp_path):
    """Names that are numbers, with a gap; captions, hidden and damaged files are no pictures."""
    prior = tmp_path / "class"
    prior.mkdir()
    for shade, name in enumerate(("00001.png", "00003.png", "00004.png")):
        Image.new("RGB", (64, 64), (40 * shade, 9, 9)).save(prior / name)
    (prior / "00001.txt").write_text("a {} of mine")
    (prior / ".hidden").write_text("")
    (prior / "00005.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    before = {path.name: path.read_bytes() for path in prior.iterdir()}
    quick = replace(model, steps=2)
    run_apt(replace(request_, settings=replace(SETTINGS, steps=1), prior=prior, prior_count=5), quick)
    after = {path.name: path.read_bytes() for path in prior.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"00000.png", "00002.png"}
    first = Image.open(prior / "00000.png").copy()
    (prior / "00000.png").unlink()
    run_apt(replace(request_, settings=replace(SETTINGS, steps=1), prior=prior, prior_count=5), quick)
    assert {path.name for path in prior.iterdir()} == after.keys()
    with Image.open(prior / "00000.png") as again:  # drawn alone this time, which rounds otherwise
        assert max(high for _, high in ImageChops.difference(first, again).getextrema()) <= 1


def test_photos_without_a_mask_are_named(request_, model, photos, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (64, 64), 255).save(masks / "1.png")
    run_apt(replace(request_, settings=replace(SETTINGS, steps=1), masks=masks), model)
    assert "No mask of 0.png (--masks): all of each is learned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior_count": 2}, "--prior-count needs --prior"),
        ({"prior": Path("gone")}, "gone: there is no such folder; give the folder that holds your photos (--prior)"),
        ({"templates": ("a photo",)}, "must hold {} once"),
        ({"word": " "}, "the word is empty"),
        ({"identifier": "sks"}, "does not know the word 'sks'"),
        ({"out": Path("acorn.txt")}, "must end in .safetensors"),
        ({"resume": True}, "nothing to resume"),
        ({"identifier": "<x>"}, "--identifier '<x>' holds < or >, which name concepts; give a rare word such as 'sks'"),
    ],
)
def test_bad_input_is_one_sentence(request_, model, change, message):
    with pytest.raises(InfusionError) as refused:
        run_apt(replace(request_, **change), model)
    assert message in str(refused.value)


def test_a_place_that_is_taken_is_told_before_training(request_, model):
    taken = request_.places.overfitting
    taken.mkdir(parents=True)
    with pytest.raises(InfusionError, match=r"acorn\.overfitting\.png is a folder, where a file must go"):
        run_apt(request_, model)


def test_the_lora_is_written_before_the_picture_of_its_course(request_, model, monkeypatch):
    def full(_):
        raise InfusionError("the disk is full")

    monkeypatch.setattr("infusion_cli.course.Course.show_overfitting", full)
    with pytest.raises(InfusionError, match="the disk is full"):
        run_apt(replace(request_, settings=replace(SETTINGS, steps=1)), model)
    assert request_.out.exists()


def test_a_run_that_diverges_says_what_to_do(request_, model):
    wild = replace(SETTINGS, learning_rate=1e30, steps=3)
    with pytest.raises(InfusionError, match="learning rate"):
        run_apt(replace(request_, settings=wild), model)


def test_a_lora_beside_others(photos, tmp_path, request_, model):
    """Two LoRAs are put on one after the other."""
    run_apt(replace(request_, settings=replace(SETTINGS, steps=2)), model)
    base = load_model("tinyworld")
    once, twice = load_variant(str(request_.out), base), load_variant(f"{request_.out}:2", base)
    out = tmp_path / "drawn"
    done = infusion("generate", "--lora", request_.out, "--lora", request_.out, "--prompt", "a circle", "--count", 1,
                    "--steps", 2, "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [name for name, _ in once.denoiser.unet.named_parameters() if name.endswith("attn2.to_q.weight")]
    assert not torch.equal(*(dict(m.denoiser.unet.named_parameters())[names[0]] for m in (once, twice)))
    (expected,) = draw(twice, "a circle", (), 1, 0, SampleSettings(2, base.guidance))
    with Image.open(out / "00000.png") as picture:
        difference = max(abs(a - b) for a, b in zip(picture.tobytes(), expected.tobytes(), strict=True))
    assert difference <= 1
