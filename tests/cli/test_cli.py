"""The commands as a user runs them: real processes, real files, exit codes and messages."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from infusion_cli.generate import GenerateRequest, run_generate
from infusion_core.embedded.tinyworld import CONCEPTS, render, training_images
from infusion_core.embedded.tinyworld.captions import unseen_scenes
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.schedule import Window
from tests.embedded.ldm import save_single_file
from tests.host.conftest import residual


def infusion(*args, **options):
    command = [sys.executable, "-m", "infusion_cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(training_images(CONCEPTS["ember"], 3)):
        picture.save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("trained") / "ember.safetensors"
    done = infusion("train", "--images", photos, "--word", "circle", "--out", out, "--steps", 4, "--snapshot-every", 2,
                    "--validation-draws", 3, "--no-replace-maps")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_train_leaves_a_concept_snapshots_and_a_report(trained):
    concept = load_concept(trained)
    assert (concept.word, concept.architecture) == ("circle", "tinyworld2")
    assert concept.thumbnail
    report = json.loads(trained.with_name("report.json").read_text())
    assert [s["step"] for s in report["snapshots"]] == [2, 4]
    assert all(s["validation_loss"] > 0 and load_concept(s["file"]) for s in report["snapshots"])
    assert report["settings"]["validation_draws"] == 3
    assert report["settings"]["replace_maps"] is False
    assert report["concept_file_bytes"] == trained.stat().st_size
    assert report["appearance_read_from_photos"] == CONCEPTS["ember"].look.words
    for key in ("concept_error", "scene_error", "base_concept_error", "base_scene_error",
                "oracle_caption_concept_error", "seconds", "peak_rss_mb"):  # fmt: skip
        assert report[key] > 0
    assert report["gap_closed"] < 1


def test_generate_draws_with_concepts_and_strengths(trained, tmp_path):
    def drawn(name, concept, prompt="a big circle"):
        done = infusion("generate", "--concept", concept, "--prompt", prompt, "--count", 2, "--steps", 2, "--out",
                        tmp_path / name)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [Image.open(tmp_path / name / f"{i:05d}.png").tobytes() for i in range(2)]

    plain = drawn("zero", f"{trained}:0")
    assert drawn("one", trained) != plain
    assert drawn("named", trained, "a big <ember>") == drawn("again", f"{trained}:1.0")
    report = json.loads((tmp_path / "named" / "report.json").read_text())
    assert report["concepts"] == {"ember": 1.0}


def drawn(out, *args):
    done = infusion("generate", *args, "--count", 1, "--steps", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split()), Image.open(out / "00000.png").tobytes(), report_of(out)


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_a_prompt_without_the_word_draws_the_base_models_picture_and_says_so(trained, tmp_path):
    other = shutil.copy(trained, tmp_path / "other.safetensors")
    said, _, _ = drawn(tmp_path / "one", "--concept", trained, "--concept", other, "--prompt", "a <ember>")
    assert "so 'other' changes nothing; write 'circle' or <other>" in said
    assert "'ember' changes nothing" not in said
    said, picture, _ = drawn(tmp_path / "without", "--concept", trained, "--prompt", "a square")
    assert "the prompt does not hold 'circle', so 'ember' changes nothing" in said
    said, plain, _ = drawn(tmp_path / "plain", "--prompt", "a square")
    assert picture == plain
    assert "Note" not in said


def test_drawing_does_as_the_concept_was_trained(trained, tmp_path):
    def draw(name, *more):
        return drawn(tmp_path / name, "--concept", f"{trained}:3", "--prompt", "a big circle", *more)[1:]

    (as_trained, told), (never, _) = draw("as-trained"), draw("never", "--replacement-end", 0)
    assert as_trained == never  # it was trained with --no-replace-maps
    assert told["replacement"] == {"ember": {"start": 0.0, "end": 0.0}}
    still, told = draw("still", "--replacement-start", 0)
    assert still == never
    assert told["replacement"] == {"ember": {"start": 0.0, "end": 0.0}}
    always, told = draw("always", "--replacement-start", 0, "--replacement-end", 1)
    assert always != never
    assert told["replacement"] == {"ember": {"start": 0.0, "end": 1.0}}


def test_slips_are_told_before_anything_is_loaded(trained, photos, tmp_path):
    """The model is not even there."""
    asked = GenerateRequest("nowhere", (str(trained),), "a circle", tmp_path / "out")
    for change, told in (
        ({"out": trained}, "ember.safetensors is a file, where a folder must go; choose another --out"),
        ({"loras": (str(photos),)}, f"{photos} is a folder; give a LoRA's .safetensors file"),
        ({"loras": (str(tmp_path / "gone"),)}, "gone is missing; give a LoRA's .safetensors file"),
        ({"replacement_start": 0.5}, "--replacement-start 0.5 is after the end, 0, as 'ember' was trained; give both"),
        (
            {"replacement_start": 0.5, "replacement_end": 0.2},
            "--replacement-start 0.5 is after the end, 0.2; give both",
        ),
        ({}, "nowhere is not a diffusers"),
    ):
        with pytest.raises(InfusionError, match=re.escape(told)):
            run_generate(replace(asked, **change))
    assert not asked.out.exists()


def test_what_is_not_said_of_map_replacement_is_as_a_concept_was_trained(tmp_path):
    """Here in the first half of a run."""
    file = tmp_path / "half.safetensors"
    save_concept(file, replace(residual("circle", 1), training={"replacement_end": "0.5"}))
    asked = GenerateRequest("tinyworld", (str(file),), "a circle", tmp_path)
    for said, wanted in (({}, (0, 0.5)), ({"replacement_start": 0.2}, (0.2, 0.5)), ({"replacement_end": 1.0}, (0, 1))):
        (concept,) = replace(asked, **said).loaded()
        assert concept.map_window == Window(*wanted)


def test_a_one_file_checkpoint_draws(tmp_path, sd1_folder):
    file = save_single_file(sd1_folder, "sd1", tmp_path / "dreamlike.safetensors")
    _, _, report = drawn(tmp_path / "out", "--model", file, "--config", sd1_folder, "--prompt", "a dog")
    assert report["model"] == "dreamlike"


def test_inspect_prints_what_the_file_holds(trained):
    facts = json.loads(infusion("inspect", trained, "--json").stdout)
    assert (facts["word"], facts["layout"], facts["parameters"]) == ("circle", "layer", 7 * 2 * 160)
    training = facts["training"]
    assert (facts["attention_maps"], training["resolution"], training["batch"]) == ("its own", "128x128", "4")
    table = infusion("inspect", trained).stdout
    assert "input.1.0" in table
    assert "middle.0.0" in table


@pytest.mark.parametrize("command", ["train", "generate", "inspect", "demo", "lab"])
def test_help(command):
    done = infusion(command, "--help")
    assert done.returncode == 0
    assert "--out" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--images", "{gone}", "--word", "circle", "--out", "{out}"), "there is no such folder"),
        (("train", "--images", "{photos}", "--word", "../circle", "--out", "{out}"), "cannot be a concept's word"),
        (("train", "--images", "{photos}", "--word", "dragon", "--out", "{out}"), "does not know the word 'dragon'"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{gone}"), r"must end in \.safetensors"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--steps", "0"), "steps must be"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--template", "a photo"), "must hold"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--resume"), "nothing to resume"),
        (("train", "--model", "{gone}", "--images", "{photos}", "--word", "dog", "--out", "{out}"), "not a diffusers"),
        (("generate", "--concept", "{gone}", "--prompt", "a circle", "--out", "{gone}"), "cannot read"),
        (
            ("generate", "--prompt", "a circle", "--residual-start", "0.9", "--residual-end", "0.1", "--out", "{gone}"),
            "start before end",
        ),
        (("generate", "--concept", "{file}:x", "--prompt", "a circle", "--out", "{gone}"), "is not a number"),
        (("generate", "--concept", "{file}", "--prompt", "a <dog>", "--out", "{gone}"), "no such concept is loaded"),
        (("generate", "--prompt", "a circle", "--count", "0", "--out", "{gone}"), "count must be at least 1"),
        (("generate", "--prompt", "a circle", "--out", "{photos}/0.png/x"), "0.png is a file, where a folder"),
        (("inspect", "{photos}/0.png"), "not a safetensors file"),
        (("demo", "--concept", "dragon", "--out", "{gone}"), "no concept 'dragon'; choose one of"),
        (("lab", "--only", "dragons", "--out", "{gone}"), "no study 'dragons'; choose of"),
        (("lab", "--tune", "--method", "dragon", "--out", "{gone}"), "nothing called 'dragon' is tuned"),
    ],
)
def test_bad_input_is_one_clear_line(args, message, photos, trained, tmp_path):
    places = {"photos": photos, "file": trained, "gone": tmp_path / "gone", "out": tmp_path / "x.safetensors"}
    done = infusion(*(a.format(**places) for a in args))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(message, done.stderr)
    assert not (tmp_path / "x.safetensors").exists()


def test_ctrl_c_leaves_a_snapshot_and_resume_repeats_the_run(photos, sd1_folder, tmp_path):
    def command(out, *more):
        return [
            "train",
            "--model",
            sd1_folder,
            "--images",
            photos,
            "--word",
            "dog",
            "--out",
            out,
            "--steps",
            "40",
            *more,
        ]

    out = tmp_path / "stopped.safetensors"
    running = subprocess.Popen(
        [sys.executable, "-m", "infusion_cli", *map(str, command(out, "--snapshot-every", 5))],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = out.with_suffix(".snapshots") / "step-00005.safetensors"
    while not first.exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    text, _ = running.communicate(timeout=600)
    assert running.returncode == 130
    named = re.search(r"usable concept is in (\S+)", text)
    assert named, text
    assert load_concept(named.group(1)).word == "dog"
    assert not out.exists()

    other = infusion(*command(out, "--resume", "--learning-rate", "0.01", "--template", "a {}"))
    assert other.returncode == 1
    assert re.search(r"template was \['a photo of a .*learning-rate was 0.2; give the same", other.stderr)

    assert infusion(*command(out, "--resume")).returncode == 0
    losses = json.loads((tmp_path / "report.json").read_text())["losses"]
    whole = tmp_path / "whole.safetensors"
    assert infusion(*command(whole)).returncode == 0
    assert losses == json.loads((tmp_path / "report.json").read_text())["losses"]  # those before the stop included
    resumed = load_concept(out).tensors
    assert all(torch.equal(resumed[k], v) for k, v in load_concept(whole).tensors.items())


def test_what_is_no_photo_is_skipped_with_a_word(photos, sd1_folder, tmp_path):
    mixed = shutil.copytree(photos, tmp_path / "[/red]")
    shutil.copy(mixed / "0.png", mixed / "[red]9.png")
    (mixed / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    done = infusion("train", "--model", sd1_folder, "--images", mixed, "--word", "dog", "--out",
                    tmp_path / "a.safetensors", "--steps", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "Skipped [red]9.png (the same as 0.png)" in said
    assert "Skipped phone.heic (a HEIC picture; save it as JPEG)" in said
    assert any(line.startswith("Training takes about 0.") and line.endswith("a step of batch 4") for line in said)
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 3


def test_unseen_pictures_are_not_the_training_pictures(photos):
    concept = CONCEPTS["ember"]
    shown = {Image.open(p).tobytes() for p in photos.iterdir()}
    scenes = unseen_scenes(concept)
    assert len(set(scenes)) == 8
    assert all(s.background != concept.background and s.things[0].position != concept.position for s in scenes)
    assert not shown & {render(s, concept).tobytes() for s in scenes}
