"""Runs that are stopped, killed, resumed, started twice or given what cannot be; and what they leave."""

from __future__ import annotations

import json
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

from infusion_cli.alone import alone
from infusion_cli.demo import run_demo
from infusion_cli.train import run_train
from infusion_core.embedded.identity import SAMPLES, hash_of_model, hash_of_photo
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept
from infusion_core.training.overfitting import MEASURED
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.state import TrainState, save_state
from tests.fuzz.crashing import toy_model, toy_request

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from infusion_cli.alone import alone
with alone(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.read()
"""
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


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, colour in enumerate(("red", "teal", "gold")):
        Image.new("RGB", (4, 4), colour).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def request_(tmp_path, photos):
    return toy_request(photos, tmp_path / "out" / "cat.safetensors")


@pytest.fixture
def ran(request_):
    run_train(request_, toy_model())
    return replace(request_, resume=True)


def refusal(request, model=None):
    with pytest.raises(InfusionError) as refused:
        run_train(request, model or toy_model())
    return str(refused.value)


def setting(name, value):
    return lambda request: replace(request, settings=replace(request.settings, **{name: value}))


OTHER = {
    "seed": (setting("seed", 4), "but seed was 0; give the same again, or leave --resume out to train from the start"),
    "rate": (setting("learning_rate", 0.5), "but learning-rate was 0.2; give"),
    "draws": (setting("validation_draws", 2), "but validation-draws was 1; give"),
    "word": (lambda request: replace(request, word="dog"), "but word was cat; give"),
    "templates": (lambda request: replace(request, templates=("a {}",)), "but template was ['a photo of a {}'"),
    "start": (lambda request: replace(request, start=request.out), "but --continue was not given; give"),
    "two": (
        lambda request: setting("seed", 4)(setting("steps", 9)(request)), "but steps was 12 and seed was 0; give"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_resume_names_what_differs(ran, case):
    change, message = OTHER[case]
    before = ran.places.state.read_bytes()
    assert message in refusal(change(ran))
    assert ran.places.state.read_bytes() == before


def test_resume_names_other_photos(ran, photos):
    Image.new("RGB", (4, 4), "pink").save(photos / "1.png")
    assert "but photo 2 of 3 was another; give" in refusal(ran)
    (photos / "1.png").unlink()
    assert "but there were 3 photos, not 2; give" in refusal(ran)
    Image.new("RGB", (4, 4), "teal").save(photos / "1.bmp")  # the same picture, in another file
    run_train(ran, toy_model())


def test_resume_names_another_model_and_not_another_name_of_it(ran):
    other = toy_model()
    next(other.denoiser.parameters()).data[0] += 1
    assert "but the model was other weights of that name; give" in refusal(ran, other)
    assert "but the model was toy; give" in refusal(ran, replace(other, name="other"))
    run_train(ran, replace(toy_model(), name="moved"))


def test_resume_names_another_start(request_, tmp_path):
    run_train(request_, toy_model())
    first, second = tmp_path / "first.safetensors", request_.places.snapshot(3)
    first.write_bytes(request_.out.read_bytes())
    went_on = replace(request_, out=tmp_path / "on" / "cat.safetensors", start=first)
    run_train(went_on, toy_model())
    assert "but --continue was given another concept" in refusal(replace(went_on, resume=True, start=second))
    assert "but --continue was given another concept" in refusal(replace(went_on, resume=True, start=None))
    run_train(replace(went_on, resume=True), toy_model())


def test_snapshots_may_be_kept_more_often(ran):
    run_train(setting("snapshot_every", 5)(ran), toy_model())


def test_a_spoilt_or_foreign_state_is_refused_in_one_line(ran):
    state = ran.places.state
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for data in (b"", whole[:-1], bytes(flipped), b"\0" * 100, ran.out.read_bytes()):
        state.write_bytes(data)
        assert re.fullmatch(rf"{re.escape(str(state))} is not a training state .*start, without --resume", refusal(ran))
    save_state(state, TrainState(3, {}, {}, {}, {}))
    assert "is not the state of a run of this command; leave --resume out" in refusal(ran)
    state.unlink()
    assert "nothing to resume" in refusal(ran)
    state.mkdir()
    assert "is not a training state" in refusal(ran)


def test_starting_afresh_sets_the_earlier_run_aside_and_touches_nothing_of_the_users(ran, monkeypatch):
    before = {path.name: path.read_bytes() for path in ran.places.snapshots.glob("*.safetensors")}
    assert len(before) > 1
    mine = ran.places.snapshots / "mine.txt"
    mine.write_text("mine")
    monkeypatch.setattr("infusion_cli.course.Course.train", stop)
    with pytest.raises(SystemExit):
        run_train(replace(ran, resume=False), toy_model())
    assert not ran.places.state.exists()
    assert sorted(path.name for path in ran.places.snapshots.iterdir()) == ["earlier", "mine.txt"]
    left = {path.name: path.read_bytes() for path in ran.places.earlier.iterdir()}
    assert left == before
    assert mine.read_text() == "mine"
    assert "nothing to resume" in refusal(ran)


def test_what_ctrl_c_left_is_no_snapshot_of_the_run_that_goes_on(request_, monkeypatch):
    whole = run_train(request_, toy_model()).report
    with monkeypatch.context() as patch:
        patch.setattr("infusion_cli.console.Interrupt.asked", True)
        with pytest.raises(SystemExit):
            run_train(request_, toy_model())
    assert (request_.places.snapshot(1)).is_file()
    resumed = run_train(replace(request_, resume=True), toy_model()).report
    assert resumed["snapshots"] == whole["snapshots"]


def test_what_cannot_be_trained_leaves_the_state(ran):
    for photo in ran.images.iterdir():
        photo.write_bytes(b"none")
    with pytest.raises(InfusionError, match="no photos"):
        run_train(replace(ran, resume=False), toy_model())
    assert ran.places.state.exists()


def stop(_):
    raise SystemExit


def test_a_second_run_is_refused_while_the_first_one_lives(request_, capsys):
    held = [sys.executable, "-c", HOLDER, str(request_.out)]
    first = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert first.stdout.readline() == b"there\n"
    refused = refusal(request_)
    assert re.search(rf"another run is writing .*process {first.pid} on .*since 20.*; wait for it, or choose", refused)
    run_train(replace(request_, out=request_.out.with_name("dog.safetensors")), toy_model())  # beside it is free
    assert "was killed" not in capsys.readouterr().out
    first.kill()
    first.wait()
    run_train(request_, toy_model())
    said = " ".join(capsys.readouterr().out.split())
    assert f"an earlier run of cat.safetensors was killed (process {first.pid} on" in said
    run_train(request_, toy_model())
    assert "was killed" not in capsys.readouterr().out
    assert not list(request_.out.parent.glob(".*"))


def test_a_run_is_alone_in_its_own_process_too(request_):
    with alone(request_.out):
        assert "another run is writing" in refusal(request_)
    with pytest.raises(ZeroDivisionError), alone(request_.out):
        _ = 1 / 0
    run_train(request_, toy_model())


def test_a_lock_file_that_says_nothing_or_nonsense_is_taken_over(request_, capsys):
    request_.out.parent.mkdir()
    lock = request_.out.with_name(".cat.lock")
    for text in ('{"process": 1', "\x1b[2J" + "a" * 5000, "[" * 900):
        lock.write_text(text)
        with alone(request_.out):
            pass
        assert "\x1b" not in capsys.readouterr().out
        assert not lock.exists()


def test_a_second_concept_in_a_folder_keeps_the_firsts_report(request_):
    run_train(request_, toy_model())
    run_train(replace(request_, out=request_.out.with_name("tom.safetensors"), word="tom"), toy_model())
    reports = {name: json.loads((request_.out.parent / f"{name}.json").read_text())
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
def test_a_bad_place_is_found_before_the_photos_and_the_model(request_, tmp_path, case):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "below" / "report.json").mkdir(parents=True)
    (tmp_path / "kept.snapshots").touch()
    out, message = BAD_PLACES[case]
    if case == "nowhere" and not Path("/proc").is_dir():
        pytest.skip("a place nobody can write")
    none = replace(request_, out=tmp_path / out, images=tmp_path / "gone", model="gone")
    assert re.search(message, refusal(none))


def test_the_longest_name_that_can_be_is_trained_and_resumed(request_):
    longest = replace(request_, out=request_.out.with_name("a" * 239 + ".safetensors"))
    run_train(longest, toy_model())
    run_train(replace(longest, resume=True), toy_model())


@pytest.mark.parametrize(("change", "message"), [({"word": "../x"}, "cannot be"), ({"templates": ("a",)}, "must hold")])
def test_a_bad_word_or_template_is_found_before_anything_is_made(request_, change, message):
    assert message in refusal(replace(request_, images=Path("gone"), model="gone", **change))
    assert not request_.out.parent.exists()


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
def test_a_signal_in_the_first_seconds_is_quiet(photos, args, module, number):
    command = [sys.executable, "-c", CTRL_C_AT, module, number, *(a.format(photos) for a in args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, number), "", "")


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


def test_overfitting_is_measured_and_shown_where_it_is_asked_for(request_):
    run_train(request_, toy_model())
    assert not request_.places.overfitting.exists()
    plain = load_concept(request_.out)
    settings = replace(request_.settings, restraint=MEASURED)
    report = run_train(replace(request_, settings=settings), toy_model()).report
    steps = request_.settings.steps
    assert [step for step, _ in report["indicator"]] == list(range(1, steps + 1))
    assert all(len(gamma) == 10 for _, gamma in report["indicator"])
    with Image.open(request_.places.overfitting) as curve:
        assert curve.width > 300
    measured = load_concept(request_.out)
    assert all(torch.equal(tensor, measured.tensors[name]) for name, tensor in plain.tensors.items())
    with pytest.raises(InfusionError, match="restraint was"):
        run_train(replace(request_, resume=True), toy_model())


def test_out_of_memory_is_one_line_and_exit_code_1(photos, tmp_path):
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
    args = ["train", "--images", str(photos), "--word", "circle", "--out", str(tmp_path / "a.safetensors")]
    ended = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert re.search(r"Error: out of memory in step 1\. .*checkpointing", ended.stderr)
    assert "Traceback" not in ended.stderr
