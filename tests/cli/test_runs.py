"""Runs that are stopped, killed or given what cannot be; and what they leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from infusion_cli.demo import run_demo
from infusion_cli.train import run_train
from infusion_core.embedded.identity import SAMPLES, hash_of_model, hash_of_photo
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.errors import InfusionError
from infusion_core.residual_file import is_concept_file, load_concept
from infusion_core.training.engine import Trainer
from infusion_core.training.overfitting import MEASURED
from infusion_core.training.residual import ResidualSettings
from tests.fuzz.crashing import toy_model

from .toy_runs import ROOT, refusal

CTRL_C_AT = """
import os, signal, sys
module, number, *sys.argv[1:] = sys.argv[1:]
class AtImport:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), getattr(signal, number))
sys.meta_path.insert(0, AtImport())
from infusion_cli.__main__ import main
main()
"""


def test_a_second_concept_in_a_folder_keeps_the_firsts_report(toy_run):
    run_train(toy_run, toy_model())
    run_train(replace(toy_run, out=toy_run.out.with_name("tom.safetensors"), word="tom"), toy_model())
    reports = {name: json.loads((toy_run.out.parent / f"{name}.json").read_text())
               for name in ("report", "cat.report", "tom.report")}  # fmt: skip
    assert reports["report"] == reports["tom.report"]
    assert [report["word"] for report in reports.values()] == ["tom", "cat", "tom"]


BAD_PLACES = {
    "ending": ("cat.pt", "must end in .safetensors"),
    "file as folder": ("photos/0.png/cat.safetensors", "cannot write .*choose another --out"),
    "folder": ("folder.safetensors", "folder.safetensors is a folder, where a file must go; choose another --out"),
    "report is a folder": ("below/cat.safetensors", "report.json is a folder, where a file must go"),
    "snapshots are a file": ("kept.safetensors", "kept.snapshots is no folder, where snapshots must go"),
    "long": ("a" * 244 + ".safetensors", "cannot write a*.*choose another --out"),
    "null": ("a\0b.safetensors", "cannot write .*choose another --out"),
    "nowhere": ("/proc/nothing/cat.safetensors", "cannot write /proc/nothing: .*choose another place"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_a_bad_place_is_found_before_the_photos_and_the_model(toy_run, tmp_path, case):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "below" / "report.json").mkdir(parents=True)
    (tmp_path / "kept.snapshots").touch()
    out, message = BAD_PLACES[case]
    if case == "nowhere" and not Path("/proc").is_dir():
        pytest.skip("a place nobody can write")
    none = replace(toy_run, out=tmp_path / out, images=tmp_path / "gone", model="gone")
    assert re.search(message, refusal(none))


def test_the_longest_name_that_can_be_is_trained_and_resumed(toy_run):
    longest = replace(toy_run, out=toy_run.out.with_name("a" * 239 + ".safetensors"))
    run_train(longest, toy_model())
    run_train(replace(longest, resume=True), toy_model())


@pytest.mark.parametrize(("change", "message"), [({"word": "../x"}, "cannot be"), ({"templates": ("a",)}, "must hold")])
def test_a_bad_word_or_template_is_found_before_anything_is_made(toy_run, change, message):
    assert message in refusal(replace(toy_run, images=Path("gone"), model="gone", **change))
    assert not toy_run.out.parent.exists()


def test_sigterm_leaves_a_snapshot_as_ctrl_c_does(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "ember.safetensors"
    folder.mkdir()
    training_images(CONCEPTS["ember"], 1)[0].save(folder / "0.png")
    running = infusion("train", "--images", folder, "--word", "circle", "--out", out, "--snapshot-every", 2)
    while not list(out.with_suffix(".snapshots").glob("step-*")) and running.poll() is None:
        time.sleep(0.02)
    running.terminate()
    said, wrong = running.communicate(timeout=600)
    assert (running.returncode, wrong) == (143, "")
    named = re.search(r"usable concept is in (\S+)", said)
    assert named, said
    assert load_concept(named.group(1)).word == "circle"
    assert not list(tmp_path.glob(".*"))


def infusion(*args):
    command = [sys.executable, "-m", "infusion_cli", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(
    ("args", "module", "number"),
    [
        (("train", "--images", "{}", "--word", "circle", "--out", "{}/x.safetensors"), "typer", "SIGINT"),
        (("train", "--images", "{}", "--word", "circle", "--out", "{}/x.safetensors"), "torch._tensor", "SIGINT"),
        (("train", "--images", "{}", "--word", "circle", "--out", "{}/x.safetensors"), "infusion_cli.train", "SIGTERM"),
        (("train", "--images", "{}", "--word", "circle", "--out", "{}/x.safetensors"), "diffusers", "SIGINT"),
        (("generate", "--prompt", "a circle", "--out", "{}/x"), "transformers.models", "SIGINT"),
        (("demo", "--out", "{}/x"), "numpy.linalg", "SIGINT"),
        (("inspect", "{}/x"), "infusion_cli.inspect", "SIGINT"),
    ],
)
def test_a_signal_in_the_first_seconds_is_quiet(toy_photos, args, module, number):
    command = [sys.executable, "-c", CTRL_C_AT, module, number, *(a.format(toy_photos) for a in args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, number), "", "")


def test_a_path_may_be_any_bytes(toy_run, tmp_path):
    folder = tmp_path / os.fsdecode(b"K\xe4tze")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names are Unicode here")
    odd = replace(toy_run, out=folder / "cat.safetensors")
    run_train(odd, toy_model())
    run_train(replace(odd, resume=True), toy_model())
    assert r"K\udce4tze" in odd.places.page.read_text()
    assert is_concept_file(odd.out)
    assert not is_concept_file(odd.places.page)


def test_a_stopped_demo_goes_on(tmp_path, monkeypatch, capsys):
    settings, begun, run = ResidualSettings(steps=3, batch_size=1), [], Trainer.run

    def watched(self):
        begun.append(self.step)
        return run(self)

    monkeypatch.setattr("infusion_cli.console.Interrupt.asked", True)
    with pytest.raises(SystemExit):
        run_demo(tmp_path, "ember", settings)
    assert "the same command with --resume" in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "run", watched)
    with pytest.raises(SystemExit):
        run_demo(tmp_path, "ember", settings, resume=True)
    assert begun == [1]


def test_the_demo_touches_no_picture_that_is_not_its_own(tmp_path):
    mine = tmp_path / "photos" / "holiday.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(InfusionError, match=r"holiday\.jpg is no picture of the demo's; choose another folder"):
        run_demo(tmp_path, "ember", ResidualSettings(steps=1))
    assert [path.name for path in mine.parent.iterdir()] == ["holiday.jpg"]


def test_models_and_photos_are_told_by_what_they_hold():
    assert hash_of_model(toy_model()) == hash_of_model(toy_model())
    wide = toy_model()
    for parameter in wide.denoiser.parameters():
        parameter.data = parameter.data.half().double()
    assert hash_of_model(wide) == hash_of_model(toy_model())
    longer = toy_model()
    longer.vae.weight.data = torch.zeros(2, SAMPLES)
    assert hash_of_model(longer) != hash_of_model(toy_model())
    assert hash_of_model(replace(toy_model(), resolution=4)) != hash_of_model(toy_model())
    one, other = Image.new("RGB", (2, 8)), Image.new("RGB", (8, 2))
    assert hash_of_photo(one) != hash_of_photo(other)
    assert hash_of_photo(one) == hash_of_photo(one.copy())


def test_overfitting_is_measured_and_shown_where_it_is_asked_for(toy_run):
    run_train(toy_run, toy_model())
    assert not toy_run.places.overfitting.exists()
    plain = load_concept(toy_run.out)
    settings = replace(toy_run.settings, restraint=MEASURED)
    report = run_train(replace(toy_run, settings=settings), toy_model()).report
    steps = toy_run.settings.steps
    assert [step for step, _ in report["indicator"]] == list(range(1, steps + 1))
    assert all(len(gamma) == 10 for _, gamma in report["indicator"])
    with Image.open(toy_run.places.overfitting) as curve:
        assert curve.width > 300
    measured = load_concept(toy_run.out)
    assert all(torch.equal(tensor, measured.tensors[name]) for name, tensor in plain.tensors.items())
    with pytest.raises(InfusionError, match="restraint was"):
        run_train(replace(toy_run, resume=True), toy_model())


def test_out_of_memory_is_one_line_and_exit_code_1(toy_photos, tmp_path):
    code = """
import sys
import torch
from infusion_core.training.engine import Trainer
def large(*_):
    raise torch.cuda.OutOfMemoryError("2 GiB")
Trainer._gradients = large
from infusion_cli.__main__ import main
main()
"""
    args = ["train", "--images", str(toy_photos), "--word", "circle", "--out", str(tmp_path / "a.safetensors")]
    ended = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert re.search(r"Error: out of memory in step 1\. .*checkpointing", ended.stderr)
    assert "Traceback" not in ended.stderr
