"""The command `advise` as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from infusion_cli.advise import AdviseRequest, run_advise
from infusion_cli.judging import Judging
from infusion_core.attention import Plan
from infusion_core.embedded.adapters import load_variant
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw, sampler_for
from infusion_core.embedded.tinyworld import CONCEPTS, score, training_images
from infusion_core.embedded.tinyworld.captions import UNSEEN_ASPECTS, caption, unseen_scenes
from infusion_core.embedded.tinyworld.reading import read_concept
from infusion_core.embedded.watching import draw_watched
from infusion_core.errors import InfusionError
from infusion_core.readers import WordMaps, WordReader

from .test_blend import epochs
from .test_cli import infusion

__all__ = ["epochs"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(training_images(CONCEPTS["ember"], 3)):
        picture.save(folder / f"{i}.png")
    return folder


def test_watching_changes_no_picture(tinyworld):
    settings = SampleSettings(3, 3.0)
    pictures, maps = draw_watched(tinyworld, "a big circle on pink", ["circle", "pink"], 2, 5, settings)
    plain = draw(tinyworld, "a big circle on pink", [], 2, 5, settings)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, plain, strict=True))
    share = sum(maps.mean(word, 0, 16, 16) for word in ("circle", "pink"))
    assert share.shape == (2, 16, 16)
    assert 0 < share.min() < share.max() < 1
    one = SampleSettings(1, 3.0)
    _, maps = draw_watched(tinyworld, "a big circle on pink", ["circle"], 2, 5, one)
    sampler, own = sampler_for(tinyworld, "a big circle on pink", (), one), WordMaps(("circle",))
    (moment,) = sampler.moments(2)
    said = sampler.rows(tinyworld.noise(2, 5) * sampler.scheduler.init_noise_sigma, moment)[-1]
    with torch.no_grad():
        sampler.predict([said], moment, Plan(readers=[WordReader(slice(None), {"circle": [3]}, own)]))
    torch.testing.assert_close(maps.sums, own.sums)


def test_the_oracle_judges_and_pairs_are_tried(epochs, photos, tmp_path):
    early, late = epochs / "early.safetensors", f"{epochs / 'late.safetensors'}:0.5"
    done = infusion("advise", "--epoch", early, "--epoch", late, "--subject", "circle", "--images", photos, "--count",
                    1, "--steps", 2, "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    alone, tried = report["judged"][:3], report["judged"][3:]
    assert [one["setup"]["late"] for one in alone] == ["base", "early", "late"]
    assert alone[0]["collapse"] == 0 != alone[2]["collapse"]
    assert {one["setup"]["early"] for one in tried} <= {"base", "early", "late"}
    assert len(tried) in (3, 6)

    base = load_model("tinyworld")
    concept = read_concept(training_images(CONCEPTS["ember"], 3), "circle")
    scenes = unseen_scenes(concept, 4)
    model, settings = load_variant(late, base), SampleSettings(2, base.guidance)
    drawn = [draw(model, caption(scene, UNSEEN_ASPECTS), [], 1, 0, settings)[0] for scene in scenes]
    wanted = [score(picture, scene, concept) for picture, scene in zip(drawn, scenes, strict=True)]
    assert alone[2]["subject"] == pytest.approx(1 - fmean(s.concept_error for s in wanted), abs=1e-6)
    assert alone[2]["prompt"] == pytest.approx(1 - fmean(s.prompt_error for s in wanted), abs=1e-6)
    for name in ("grid.png", "curve.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
    title = report["advice"]["late"]
    assert f"Draw with: {title}" in done.stdout


def test_without_photos_only_collapse_is_measured(epochs, tmp_path):
    options = [x for name in ("early", "late") for x in ("--epoch", epochs / f"{name}.safetensors")]
    done = infusion("advise", *options, "--subject", "circle", "--prompt", "a big {} at the left on pink", "--count", 1,
                    "--steps", 2, "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["judged"]) == 3
    assert report["scores"] is None
    assert all(one["subject"] is None for one in report["judged"])
    assert re.search(r"its attention has (not )?collapsed", report["advice"]["reason"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--epoch", "{late}"), "at least two different epoch files"),
        (("--epoch", "{late}", "--epoch", "{late}"), "at least two different epoch files"),
        (("--epoch", "{late}", "--epoch", "{early}", "--clip", "{folder}"), "--clip, --dino and --images go together"),
        (("--epoch", "{late}", "--epoch", "{early}", "--prompt", "a dog"), r"must hold \{\} once"),
        (("--epoch", "{late}", "--epoch", "{text}"), "changes text encoders alone"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(epochs, tmp_path, options, told):
    places = {name: epochs / f"{name}.safetensors" for name in ("early", "late", "text")} | {"folder": tmp_path}
    options = [option.format(**places) for option in options]
    done = infusion("advise", "--subject", "circle", "--steps", 1, "--count", 1, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(told, done.stderr), done.stderr


@pytest.fixture
def request_(epochs, tmp_path):
    asked = tuple(str(epochs / f"{name}.safetensors") for name in ("early", "late"))
    sampling = {"steps": 1, "guidance": None}
    return AdviseRequest("gone", asked, "circle", tmp_path / "out", Judging("circle"), 1, 0, None, sampling)


def test_photos_that_nothing_can_judge_by_are_refused(tinyworld, photos):
    with pytest.raises(InfusionError, match=r"nothing here can hold pictures against --images: give --clip and --dino"):
        Judging("circle", photos, ("a {} at the left",)).by(tinyworld)
    assert Judging("circle", photos).by(tinyworld).scores is not None
    assert Judging("circle", None, ("a {} at the left",)).by(tinyworld).scores is None


def test_slips_are_told_before_anything_is_loaded(request_, tmp_path):
    """The model is not even there."""
    late, file, judging = request_.epochs[1], tmp_path / "file", request_.judging
    file.write_text("")
    for change, told in (
        ({"epochs": (late, "base")}, "--epoch base is the model before training, which is drawn as it is; leave it"),
        ({"epochs": (late, f"{late}x")}, "late.safetensorsx is missing; give a LoRA file, or a full model"),
        ({"subject": " "}, "--subject is empty; give what prompts say for it"),
        ({"judging": replace(judging, prompts=("a dog",))}, "must hold {} once"),
        ({"judging": replace(judging, prompts=("a {}",))}, "the prompt 'a {}' says nothing beside the subject; say"),
        ({"judging": replace(judging, clip=tmp_path)}, "--clip, --dino and --images go together"),
        ({"judging": replace(judging, images=tmp_path)}, f"no photos in {tmp_path} can be used"),
        ({"out": file}, f"{file} is a file, where a folder must go; choose another --out"),
        ({}, "gone is not a diffusers"),
    ):
        with pytest.raises(InfusionError, match=re.escape(told)):
            run_advise(replace(request_, **change))
    assert not request_.out.exists()


def test_braces_are_letters_but_for_the_subjects(request_):
    for prompt in ("a {} {x}", "a {} {"):
        asked = replace(request_, model="tinyworld", judging=Judging("circle", prompts=(prompt,)))
        with pytest.raises(InfusionError, match=r"does not know the word '\{"):
            run_advise(asked)


def test_an_epoch_may_be_called_base(request_, tmp_path):
    """It is told from the model before training by its whole name."""
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "late")]
    for file, epoch in zip(files, request_.epochs, strict=True):
        shutil.copy(epoch, file)
    asked = tuple(map(str, files))
    run_advise(replace(request_, model="tinyworld", epochs=asked, judging=Judging("circle", prompts=("a {} on pink",))))
    judged = json.loads((request_.out / "report.json").read_text())["judged"]
    assert [one["setup"]["late"] for one in judged] == ["base", "base.safetensors", "late.safetensors"]


def test_networks_judge_where_they_are_given(epochs, photos, tmp_path, places):
    """DINO against the photos and CLIP against the prompt, as `tests/lab` checks them for the paper's table."""
    options = [x for name in ("early", "late") for x in ("--epoch", epochs / f"{name}.safetensors")]
    options += ["--images", photos, "--clip", places["clip"], "--dino", places["dino"]]
    done = infusion("advise", *options, "--subject", "circle", "--prompt", "a {} on pink", "--count", 1, "--steps", 1,
                    "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["scores"] == ["DINO", "CLIP-T"]
    assert all(-1 <= one[name] <= 1 for one in report["judged"] for name in ("subject", "prompt"))
    assert len(report["judged"]) > 3
