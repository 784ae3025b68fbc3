"""The commands as a user runs them: real processes, real files, exit codes and messages."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from infusion_core.embedded.tinyworld import CONCEPTS, render, training_images
from infusion_core.residual_file import load_concept


def infusion(*args, **options):
    command = [sys.executable, "-m", "infusion_cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **options)


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
    assert (concept.word, concept.architecture) == ("circle", "tinyworld")
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


def test_inspect_prints_what_the_file_holds(trained):
    facts = json.loads(infusion("inspect", trained, "--json").stdout)
    assert (facts["word"], facts["layout"], facts["parameters"]) == ("circle", "block", 5 * 128)
    table = infusion("inspect", trained).stdout
    assert "down.0" in table
    assert "mid" in table


@pytest.mark.parametrize("command", ["train", "generate", "inspect", "demo", "lab"])
def test_help(command):
    done = infusion(command, "--help")
    assert done.returncode == 0
    assert "--out" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", "--images", "{gone}", "--word", "circle", "--out", "{out}"), "there is no folder"),
        (("train", "--images", "{photos}", "--word", "dragon", "--out", "{out}"), "does not know the word 'dragon'"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{gone}"), r"must end in \.safetensors"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--steps", "0"), "steps must be"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--template", "a photo"), "must hold"),
        (("train", "--images", "{photos}", "--word", "circle", "--out", "{out}", "--resume"), "nothing to resume"),
        (("train", "--model", "{gone}", "--images", "{photos}", "--word", "dog", "--out", "{out}"), "not a diffusers"),
        (("generate", "--concept", "{gone}", "--prompt", "a circle", "--out", "{gone}"), "cannot read"),
        (("generate", "--concept", "{file}", "--prompt", "a square", "--out", "{gone}"), "does not hold 'circle'"),
        (("generate", "--concept", "{file}:x", "--prompt", "a circle", "--out", "{gone}"), "is not a number"),
        (("generate", "--concept", "{file}", "--prompt", "a <dog>", "--out", "{gone}"), "no such concept is loaded"),
        (("generate", "--prompt", "a circle", "--count", "0", "--out", "{gone}"), "count must be at least 1"),
        (("generate", "--prompt", "a circle", "--out", "{photos}/0.png/x"), "cannot write"),
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


def test_ctrl_c_leaves_a_snapshot_and_resume_repeats_the_run(photos, tmp_path):
    def command(out, *more):
        return ["train", "--images", photos, "--word", "circle", "--out", out, "--steps", "40", *more]

    out = tmp_path / "stopped.safetensors"
    running = subprocess.Popen(
        [sys.executable, "-m", "infusion_cli", *map(str, command(out, "--snapshot-every", 5))],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = out.with_suffix(".snapshots") / "step-00005.safetensors"
    while not first.exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    text, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    named = re.search(r"usable concept is in (\S+)", text)
    assert named, text
    assert load_concept(named.group(1)).word == "circle"
    assert not out.exists()

    other = infusion(*command(out, "--resume", "--learning-rate", "0.01", "--template", "a {}"))
    assert other.returncode == 1
    assert re.search(r"template was \['a photo of a .*learning-rate was 0.05; give the same", other.stderr)

    assert infusion(*command(out, "--resume")).returncode == 0
    losses = json.loads((tmp_path / "report.json").read_text())["losses"]
    whole = tmp_path / "whole.safetensors"
    assert infusion(*command(whole)).returncode == 0
    assert losses == json.loads((tmp_path / "report.json").read_text())["losses"]  # those before the stop included
    resumed = load_concept(out).tensors
    assert all(torch.equal(resumed[k], v) for k, v in load_concept(whole).tensors.items())


def test_unseen_pictures_are_not_the_training_pictures(photos):
    from infusion_core.embedded.tinyworld.evaluate import unseen_scenes

    concept = CONCEPTS["ember"]
    shown = {Image.open(p).tobytes() for p in photos.iterdir()}
    scenes = unseen_scenes(concept)
    assert len(set(scenes)) == 8
    assert all(s.background != concept.background and s.things[0].position != concept.position for s in scenes)
    assert not shown & {render(s, concept).tobytes() for s in scenes}
