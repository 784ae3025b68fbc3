"""What `infusion serve` does with many clients: 200 pictures of 50 TinyWorld concepts, 16 asked for at once.

    python benchmarks/serving.py                        # needs the extras "standalone" and "cluster"

Against pictures drawn one by one in this process, without a server, in turns of 40. Each picture of the server is
compared with the one drawn alone. The last line is one JSON object: the ratio of pictures per second, pictures that
were lost, and pictures that were another's (nearer to some other request's than to their own).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.residuals import zero_residual

WORDS, TURN = ("circle", "square", "triangle", "diamond"), 40


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--concepts", type=int, default=50)
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--batch", type=int, default=8)
    args = options.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)  # as the one replica has
    model = load_model("tinyworld")
    asked = [
        {"prompt": f"a big {WORDS[i % args.concepts % 4]} at the left", "concepts": [f"c{i % args.concepts}"],
         "seed": i // args.concepts} for i in range(args.requests)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make_concepts(Path(folder), model, args.concepts)
        server, port = start(Path(folder), args.steps, args.batch)
        try:
            alone, served, seconds = in_turns(model, Path(folder), asked, port, args.steps, args.clients)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    lost = [i for i, picture in enumerate(served) if picture is None]
    worst, mixed_up = compare(alone, served)
    for name, took in seconds.items():
        print(f"{name:>10}  {len(asked) / took:7.2f} pictures/s")
    print(f"largest difference from the picture drawn alone: {worst} of 255")
    print(json.dumps({"throughput": round(seconds["one by one"] / seconds["served"], 3), "lost": len(lost),
                      "mixed_up": mixed_up, "threads": torch.get_num_threads()}))  # fmt: skip


def make_concepts(folder: Path, model: EmbeddedModel, count: int) -> None:
    """Concepts of random numbers: that they differ is all that matters here."""
    for i in range(count):
        residual, generator = zero_residual(model.denoiser.base, WORDS[i % 4]), torch.Generator().manual_seed(i)
        for tensor in residual.tensors.values():
            tensor.normal_(0, 0.5, generator=generator)
        save_concept(folder / f"c{i}.safetensors", residual)


def start(folder: Path, steps: int, batch: int) -> tuple[subprocess.Popen[str], int]:
    """A server that is ready, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = ["--concepts", folder, "--port", port, "--steps", steps, "--batch", batch, "--replicas", 1]
    command = [sys.executable, "-m", "infusion_cli", "serve", *map(str, asked)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    if not any("Ctrl-C stops" in line for line in server.stdout):
        sys.exit("the server did not start")
    return server, port


def in_turns(
    model: EmbeddedModel, folder: Path, asked: Sequence[dict[str, Any]], port: int, steps: int, clients: int
) -> tuple[list[np.ndarray], list[np.ndarray | None], dict[str, float]]:
    """Pictures drawn alone, those of the server, and the seconds that each took; one untimed picture warms both up."""
    settings = SampleSettings(steps, model.guidance)

    def alone(told: dict[str, Any]) -> np.ndarray:
        (name,) = told["concepts"]
        concept = LoadedConcept(name, load_concept(folder / f"{name}.safetensors"))
        (picture,) = draw(model, told["prompt"], [concept], 1, told["seed"], settings)
        return np.asarray(picture, dtype=int)

    def served(told: dict[str, Any]) -> np.ndarray | None:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/draw", json.dumps(told).encode())
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return np.asarray(Image.open(BytesIO(answer.read())), dtype=int)
        except (urllib.error.URLError, TimeoutError):
            return None

    ours: list[np.ndarray] = []
    theirs: list[np.ndarray | None] = []
    seconds = {"one by one": 0.0, "served": 0.0}
    alone(asked[0]), served(asked[0])
    with ThreadPoolExecutor(clients) as pool:
        for first in range(0, len(asked), TURN):
            some = asked[first : first + TURN]
            before = time.perf_counter()
            ours += map(alone, some)
            between = time.perf_counter()
            theirs += pool.map(served, some)
            seconds["one by one"] += between - before
            seconds["served"] += time.perf_counter() - between
    return ours, theirs, seconds


def compare(alone: Sequence[np.ndarray], served: Sequence[np.ndarray | None]) -> tuple[int, int]:
    """The largest difference of a picture from the one drawn alone, and how many are nearer to another one."""
    every, worst, mixed_up = np.stack(alone), 0, 0
    for i, picture in enumerate(served):
        if picture is not None:
            differences = abs(every - picture).max((1, 2, 3))
            worst, mixed_up = max(worst, int(differences[i])), mixed_up + int(differences.argmin() != i)
    return worst, mixed_up


if __name__ == "__main__":
    main()
