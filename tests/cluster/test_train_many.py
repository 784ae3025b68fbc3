"""`infusion train-many` for real: Ray's workers, one of them killed, a second start, a cluster that is not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from infusion_cluster import train_many as module
from infusion_cluster.manifest import Defaults, Job
from infusion_cluster.train_many import ManyRequest, packed, run_many
from infusion_cluster.worker import Outcome
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept
from infusion_core.training.residual import ResidualSettings

NAMES = ("ember", "wasp", "orchid", "flag")
INFUSION = [sys.executable, "-m", "infusion_cli"]
STEPS = ["--steps", "12", "--batch-size", "2"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for name in NAMES:
        (folder / name).mkdir()
        for i, picture in enumerate(training_images(CONCEPTS[name])[:2]):
            picture.save(folder / name / f"{i}.png")
    lines = [{"photos": name, "word": CONCEPTS[name].shape} for name in NAMES]
    lines[3]["seed"] = 5  # other settings, so that it is alone
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def command(manifest: Path, out: Path, *more: str) -> list[str]:
    return [*INFUSION, "train-many", str(manifest), "--out", str(out), "--together", "2", *STEPS, *more]


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    """Every job done by two workers, one of which was killed at work."""
    out = tmp_path_factory.mktemp("out")
    running = subprocess.Popen(command(manifest, out, "--workers", "2"), stdout=subprocess.PIPE, text=True)
    killed = None
    while running.poll() is None and killed is None:
        for log in (out / "logs").glob("*.log"):
            found = re.search(r"given to worker (\d+) on", log.read_text())
            if found:
                killed = int(found[1])
                os.kill(killed, signal.SIGKILL)
                break
        time.sleep(0.05)
    printed, _ = running.communicate(timeout=600)
    assert running.returncode == 0, printed
    assert killed is not None
    return out, printed, killed


def test_all_is_done_though_a_worker_was_killed(finished):
    out, printed, killed = finished
    report = json.loads((out / "report.json").read_text())
    assert report["counts"] == {"trained": 4}
    assert "4 trained" in printed
    logs = {name: (out / "logs" / f"{name}.log").read_text() for name in NAMES}
    victims = [name for name in NAMES if f"given to worker {killed} on" in logs[name]]
    assert victims
    for name in victims:  # begun by one process, and ended by another
        assert f"given to worker {killed} on" in logs[name]
        assert re.search(r"photos of '\w+', worker (\d+) on", logs[name])[1] != str(killed)
    assert all("step 12: loss" in log for log in logs.values())
    assert all(job["told"]["validation"][-1][0] == 12 for job in report["jobs"])


def test_what_was_learned_is_what_single_runs_learn(finished, manifest, tmp_path):
    """To the byte with as many threads as a worker had: the order of sums depends on them."""
    out, _, _ = finished
    threads = max(1, (os.cpu_count() or 1) // 2)
    for name, seed in (("flag", "5"), ("ember", "0")):
        single = tmp_path / f"{name}.safetensors"
        photos = ["--images", str(manifest.parent / name), "--word", CONCEPTS[name].shape]
        asked = [*INFUSION, "train", *photos, "--out", str(single), "--seed", seed, *STEPS]
        ran = subprocess.run(asked, check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        assert ran.returncode == 0
        if name == "flag":  # it was alone
            assert (out / f"{name}.safetensors").read_bytes() == single.read_bytes()
        one, other = load_concept(single), load_concept(out / f"{name}.safetensors")
        for key, tensor in one.tensors.items():
            assert (other.tensors[key] - tensor).norm() < 1e-3 * tensor.norm()


def test_a_second_start_does_nothing(finished, manifest):
    out, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = subprocess.run(command(manifest, out), capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "4 already there" in again.stdout
    assert "learning" not in again.stdout  # no worker was started
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


def test_another_photo_or_setting_is_learned_again(finished, manifest, monkeypatch):
    out, _, _ = finished
    asked = []
    monkeypatch.setattr("infusion_cluster.train_many._Run.train", lambda self, jobs: asked.extend(j.name for j in jobs))

    def told(**changed):
        asked.clear()
        settings = ResidualSettings(**{"steps": 12, "batch_size": 2, **changed})
        run_many(ManyRequest(manifest, Defaults(out, settings), "tinyworld", together=2))
        return list(asked)

    assert told() == []
    assert told(snapshot_every=3) == []
    assert told(steps=13) == list(NAMES)
    photo = manifest.parent / "wasp" / "0.png"
    kept = photo.read_bytes()
    training_images(CONCEPTS["wasp"])[4].save(photo)
    assert told() == ["wasp"]
    photo.write_bytes(kept)
    (out / "orchid.safetensors").rename(out / "aside")
    assert told() == ["orchid"]
    (out / "aside").rename(out / "orchid.safetensors")


def test_a_job_without_photos_fails_in_one_sentence_and_no_worker_starts_for_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("infusion_cluster.pool.workers", None)
    (tmp_path / "cat").mkdir()
    (tmp_path / "list.csv").write_text("photos\ncat\n")
    with pytest.raises(SystemExit) as ended:
        run_many(ManyRequest(tmp_path / "list.csv", Defaults(tmp_path / "out", ResidualSettings()), "tinyworld"))
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "cat failed: no photos in" in printed
    assert "1 failed" in printed
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["jobs"]
    assert (row["name"], row["became"]) == ("cat", "failed")


class Learner:
    """Stands for the workers: learns at once, and loses nothing of what is taken from it."""

    resolution = 64

    def run(self, packs, begun, at):
        for pack in packs:
            begun(pack, "nobody")
            yield [Outcome(task.name, task.name.encode(), {"validation": [(12, 0.1)], "seconds": 1.0}) for task in pack]


@pytest.fixture
def learned(monkeypatch, manifest):
    """Runs the command on three of the list's folders with a learner for workers; what each job came to, and why."""

    def run(out, **places):
        lines = [{"photos": name, "out": places.get(name, f"{name}.safetensors")} for name in NAMES[:3]]
        path = manifest.parent / "places.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        monkeypatch.setattr("infusion_cluster.pool.workers", lambda *_: nullcontext(Learner()))
        with suppress(SystemExit):
            run_many(ManyRequest(path, Defaults(out, ResidualSettings(), "circle"), "tinyworld"))
        told = json.loads((out / "report.json").read_text())["jobs"]
        return {row["name"]: (row["became"], row["why"]) for row in told}

    return run


def test_a_concept_that_cannot_be_written_keeps_no_other_from_it(learned, tmp_path, monkeypatch):
    write = module.write_atomic

    def full(path, data):
        if path.name == "ember.safetensors":
            raise InfusionError("cannot write ember: No space left on device")
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", full)
    found = learned(tmp_path)
    assert found == {
        "ember": ("failed", "cannot write ember: No space left on device"),
        "orchid": ("trained", ""),
        "wasp": ("trained", ""),
    }
    assert (tmp_path / "wasp.safetensors").read_bytes() == b"wasp"


def test_a_file_of_somebody_else_stays(learned, tmp_path):
    """As `infusion train` leaves one, with a report of its own."""
    foreign, report = tmp_path / "ember.safetensors", tmp_path / "ember.report.json"
    foreign.write_bytes(b"mine")
    report.write_text('{"word": "circle"}')
    found = learned(tmp_path)
    assert found.pop("ember")[1] == f"{foreign} is there and no train-many wrote it; move it away, or give the job " \
        "another 'out'"  # fmt: skip
    assert set(found.values()) == {("trained", "")}
    assert foreign.read_bytes() == b"mine"
    assert report.read_text() == '{"word": "circle"}'
    foreign.rename(tmp_path / "aside")
    assert learned(tmp_path) == {
        "ember": ("trained", ""), "orchid": ("already there", ""), "wasp": ("already there", ""),
    }  # fmt: skip


def test_a_run_that_ends_between_a_concept_and_its_report_goes_on(learned, tmp_path, monkeypatch):
    write = module.write_atomic

    def ends(path, data):
        write(path, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", ends)
        patched.setattr(module._Run, "_log", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path)
    assert (tmp_path / "ember.safetensors").exists()
    assert set(learned(tmp_path).values()) == {("trained", "")}


def test_a_cluster_that_is_not_there_is_one_sentence(manifest, tmp_path):
    asked = command(manifest, tmp_path, "--address", "127.0.0.1:1")
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Error: there is no Ray cluster at 127.0.0.1:1" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_packs_hold_jobs_of_the_same_settings():
    def job(name, **settings):
        return Job(name, Path(name), "cat", Path(f"{name}.safetensors"), ResidualSettings(**settings))

    jobs = [job("a"), job("b", steps=9), job("c"), job("d"), job("e", steps=9)]
    assert [[j.name for j in pack] for pack in packed(jobs, 2)] == [["a", "c"], ["d"], ["b", "e"]]
    with pytest.raises(InfusionError):
        ResidualSettings(steps=0)
