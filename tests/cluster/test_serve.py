"""`infusion serve` for real: Ray Serve on TinyWorld, many clients at once, bad ones among them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from infusion_cluster.serving import ServeRequest, run_serve
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.residuals import zero_residual

WORDS = ("circle", "square", "triangle")
STEPS, WAITING = 3, 8
ROUNDED = 2  # of 255: what a batch of another size may round otherwise; another concept moves some pixel by far more


@pytest.fixture(scope="module")
def model():
    return load_model("tinyworld", "cpu")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Six concepts of two layouts, one for another base model, and a file that is none."""
    out = tmp_path_factory.mktemp("concepts")
    for i in range(6):
        residual = zero_residual(model.denoiser.base, WORDS[i % 3], ("layer", "block")[i % 2])
        generator = torch.Generator().manual_seed(i)
        for tensor in residual.tensors.values():
            tensor.normal_(0, 0.5, generator=generator)
        save_concept(out / f"c{i}.safetensors", residual)
    save_concept(out / "other.safetensors", replace(residual, prediction="v_prediction"))
    (out / "broken.safetensors").write_bytes(b"no concept")
    return out


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def error(self):
        return json.loads(self.body)["error"]

    @property
    def pixels(self):
        return np.asarray(Image.open(io.BytesIO(self.body)), dtype=int)


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    said: list[str]

    def ask(self, path="/draw", body=None, **headers):
        data = body if body is None or isinstance(body, (bytes, list)) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(folder):
    port = free_port()
    asked = [sys.executable, "-m", "infusion_cli", "serve", "--concepts", folder, "--port", port, "--steps", STEPS,
             "--batch", 4, "--waiting", WAITING, "--replicas", 1]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, asked)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    said: list[str] = []
    for line in process.stdout:
        said.append(line.strip())
        if "Ctrl-C stops" in line:
            break
    else:
        pytest.fail("\n".join(said))
    yield Server(process, port, said)
    process.kill()


def test_what_does_not_fit_is_said_at_the_start(server):
    (broken,) = [line for line in server.said if "broken" in line]
    assert broken.startswith("skipped broken.safetensors: ")
    (other,) = [line for line in server.said if "other" in line]
    assert other.startswith("skipped other: the concept 'triangle' was made for v_prediction models")
    assert server.said[-1].startswith("6 concepts, ")


def test_health_and_names(server):
    health = json.loads(server.ask("/health").body)
    assert health == {"status": "ok", "model": "tinyworld", "concepts": 6, "waiting": 0}
    names = json.loads(server.ask("/concepts").body)["concepts"]
    assert names == [{"name": f"c{i}", "word": WORDS[i % 3]} for i in range(6)]


def requests():
    """24 requests, every fourth of which cannot be drawn or names no concept."""
    asked = []
    for i in range(24):
        told = {"prompt": f"a big {WORDS[i % 3]} at the left", "concepts": [f"c{i % 6}"], "seed": i // 6}
        if i % 4 == 1:
            told["concepts"] = [{"name": f"c{i % 6}", "strength": 0.5}, f"c{(i + 1) % 6}"]
            told["prompt"] += f" and a {WORDS[(i + 1) % 3]}"
        if i in (3, 11):
            told["prompt"] = "a big elephant"
        if i in (7, 15):
            told["concepts"] = ["../c1"]
        asked.append(told)
    return asked


def test_each_of_many_at_once_gets_the_picture_that_is_drawn_alone(server, model, folder):
    asked = requests()
    with ThreadPoolExecutor(WAITING) as clients:
        answers = list(clients.map(lambda told: server.ask(body=told), asked))
    assert [a.status for a in answers] == [{3: 400, 11: 400, 7: 404, 15: 404}.get(i, 200) for i in range(24)]
    assert answers[3].error.startswith("this model does not know the word 'elephant'")
    assert answers[7].error.startswith("there is no concept '../c1'; did you mean 'c1'")
    settings, drawn = SampleSettings(STEPS, model.guidance), {}
    for i, (told, answer) in enumerate(zip(asked, answers, strict=True)):
        if answer.status == 200:
            wanted = [{"name": c} if isinstance(c, str) else c for c in told["concepts"]]
            concepts = [
                LoadedConcept(c["name"], load_concept(folder / f"{c['name']}.safetensors"), c.get("strength", 1.0))
                for c in wanted
            ]
            (picture,) = draw(model, told["prompt"], concepts, 1, told["seed"], settings)
            drawn[i] = np.asarray(picture, dtype=int)
            assert answer.headers["content-type"] == "image/png"
            assert abs(answer.pixels - drawn[i]).max() <= ROUNDED
    least = min(abs(a - b).max() for i, a in drawn.items() for j, b in drawn.items() if i < j)
    assert least > 10 * ROUNDED  # so none was taken for another


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("/draw", b"{", 400, "the body is not JSON"),
        ("/draw", {"prompt": "a circle", "concepts": ["c"]}, 404, "there is no concept 'c'; did you mean 'c"),
        ("/draw", {"prompt": "a circle", "concepts": ["/etc/passwd"]}, 404, "there is no concept '/etc/passwd'"),
        ("/draw", {"prompt": "a circle", "concepts": ["c0", "c3"]}, 400, "circle"),
        ("/draw", {"prompt": "a circle", "concepts": [{"name": "c0", "strength": 1e9}]}, 400, "a number up to 1000"),
        ("/draw", b" " * 20_000, 413, "the body is larger than 16384 bytes"),
        ("/draw", [b" " * 9000] * 3, 413, "the body is larger than 16384 bytes"),
        ("/draw", None, 405, "/draw takes POST requests only"),
        ("/health", {}, 405, "/health takes GET requests only"),
        ("/../../etc/passwd", None, 404, "there is nothing at this address"),
    ],
)
def test_bad_requests_are_told_why(server, path, body, status, why):
    answer = server.ask(path, body)
    assert answer.status == status
    assert why in answer.error
    assert len(answer.error.splitlines()) == 1


def test_a_concept_that_changes_nothing_is_a_note(server):
    answer = server.ask(body={"prompt": "a big square", "concepts": ["c0"]})
    assert answer.status == 200
    assert answer.headers["infusion-note"] == "the prompt does not hold 'circle', so 'c0' changes nothing"


def test_more_than_may_wait_are_turned_away(server):
    told = {"prompt": "a big circle", "concepts": ["c0"]}
    with ThreadPoolExecutor(5 * WAITING) as clients:
        answers = list(clients.map(lambda _: server.ask(body=told), range(5 * WAITING)))
    away = [a for a in answers if a.status == 503]
    assert {a.status for a in answers} == {200, 503}
    assert len(answers) - len(away) >= WAITING
    assert all("are waited for already; ask again later" in a.error and a.headers["retry-after"] == "1" for a in away)
    assert json.loads(server.ask("/health").body)["waiting"] == 0


def test_ctrl_c_finishes_what_is_begun(server):
    told = {"prompt": "a big circle", "concepts": ["c0"]}
    with ThreadPoolExecutor(WAITING) as clients:
        begun = [clients.submit(server.ask, body=told) for _ in range(WAITING)]
        while not json.loads(server.ask("/health").body)["waiting"]:
            assert not all(one.done() for one in begun)
        server.process.send_signal(signal.SIGINT)
        assert {one.result().status for one in begun} == {200}
    said, _ = server.process.communicate(timeout=120)
    assert server.process.returncode == 0
    assert "stopping, once the pictures that are begun are done" in said
    assert "Traceback" not in said


def test_what_cannot_start_is_one_sentence(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InfusionError, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
            run_serve(ServeRequest(folder, "tinyworld", port=taken.getsockname()[1]))
    for host in ("a..b", "a" * 83):
        with pytest.raises(InfusionError, match=rf"cannot listen at {re.escape(host)}:8000: .*; choose another --host"):
            run_serve(ServeRequest(folder, "tinyworld", host=host))
    with pytest.raises(InfusionError, match=r"no concept in .* can be read; give a folder"):
        run_serve(ServeRequest(tmp_path, "tinyworld"))
    (tmp_path / "tom.safetensors").write_bytes(b"no concept")
    with pytest.raises(InfusionError, match=r"no concept in .* can be read \(skipped tom\.safetensors: .*damaged"):
        run_serve(ServeRequest(tmp_path, "tinyworld"))
    with pytest.raises(InfusionError, match=r"there is no Ray cluster at 127\.0\.0\.1:1"):
        run_serve(ServeRequest(folder, "tinyworld", port=8765, address="127.0.0.1:1"))


HOLDS = """
import sys, time, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
held = ray.remote(num_cpus=1)(type("Held", (), {"here": lambda self: 1})).remote()
ray.get(held.here.remote())
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def crowded():
    """The address of a cluster of one processor, which somebody else holds."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "RAY_AUTH_MODE": "token"},
    )  # fmt: skip
    yield other.stdout.readline().strip()
    other.communicate("", timeout=120)


def in_cluster(folder, address, mode):
    """The command, on a cluster, and the first line of what it says itself."""
    run = "import infusion_cluster.serving as s; s.FINISH_WITHIN = 1.0; from infusion_cli.app import run; run()"
    asked = [sys.executable, "-c", run, "serve", "--concepts", folder, "--port", free_port(), "--address", address]
    process = subprocess.Popen(
        list(map(str, asked)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        env={**os.environ, "RAY_AUTH_MODE": mode},
    )  # fmt: skip
    return process, next(line for line in process.stdout if "gcs_client.cc" not in line)


def test_who_finds_no_place_is_told_and_can_be_stopped(folder, crowded):
    process, said = in_cluster(folder, crowded, "token")
    assert said.startswith("Note: 1 x 1 processors and 1 x 0 GPUs are wanted, 0 and 0 are free; waiting")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "stopped before it had started" in said
    assert "Traceback" not in said


def test_a_cluster_that_wants_a_token_is_told_from_none(folder, crowded):
    process, said = in_cluster(folder, crowded, "disabled")
    assert process.wait(60) == 1
    assert f"the Ray cluster at {crowded} wants its token" in said
