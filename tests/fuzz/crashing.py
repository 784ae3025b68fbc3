"""A process whose children die at a chosen write, as by `kill -9` or a power cut: nothing is unwound or cleaned up.

Run as a program, it trains a toy model once for every line it is given, each time in a fork. `Crashing` talks to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DEAD = 137
STEPS = 12
WRITES = ("open", "write", "ftruncate", "fsync", "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir")


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, how many writes it came to, and what it said."""

    code: int
    writes: int
    said: str


class Crashing:
    """The process, from outside."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.crashing"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        )  # fmt: skip

    def train(self, photos: Path, out: Path, resume: bool = False, die_at: int = 0, torn: bool = False) -> Ended:
        """Train in a child that dies in front of its write number `die_at`, or, if `torn`, in the middle of it."""
        assert self._process.stdin
        assert self._process.stdout
        line = {"photos": str(photos), "out": str(out), "resume": resume, "die_at": die_at, "torn": torn}
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


class Writes:
    """Counts every call that changes a file system; at one of them the process is gone."""

    def __init__(self, die_at: int, torn: bool) -> None:
        self.count, self._die_at, self._torn = 0, die_at, torn
        for name in WRITES:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Any, truncate: Any = os.ftruncate) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            self.count += 1
            if self.count == self._die_at:
                if self._torn and name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    truncate(args[0], os.fstat(args[0]).st_size // 2)  # what was not on the disk yet is lost
                os._exit(DEAD)
            return None if name == "fsync" else real(*args, **options)  # the machine itself stays up: no need to wait

        return call


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    _warm_up()
    for line in sys.stdin:
        print(json.dumps(vars(_child(**json.loads(line)))), flush=True)


def _warm_up() -> None:
    """Whatever a run imports or sets up at its first step, so that no child has to."""
    from PIL import Image

    from infusion_cli.train import run_train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        photo, out = Path(folder) / "photo.png", Path(folder) / "warm.safetensors"
        Image.new("RGB", (2, 2)).save(photo)
        run_train(toy_request(photo, out), toy_model())


def _child(**asked: Any) -> Ended:
    counted, count = os.pipe()
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if not pid:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            _die(count, **asked)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(count)
        with os.fdopen(counted) as counted_file:
            writes = int(counted_file.read() or 0)
        said.seek(0)
        return Ended(code, writes, said.read())


def _die(count: int, photos: str, out: str, resume: bool, die_at: int, torn: bool) -> None:
    """Train, and leave; never returns."""
    from infusion_cli.train import run_train
    from infusion_core.errors import InfusionError

    code, write, leave = 1, os.write, os._exit
    try:
        request = toy_request(Path(photos), Path(out), resume)
        model = toy_model()
        writes = Writes(die_at, torn)
        run_train(request, model)
        code = 0
        write(count, str(writes.count).encode())
    except InfusionError as error:
        print(f"Error: {error}")
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        sys.stdout.flush()
        leave(code)


def toy_request(photos: Path, out: Path, resume: bool = False, **changed: Any) -> Any:
    """Twelve steps with a snapshot after each."""
    from infusion_cli.train import TrainRequest
    from infusion_core.training.residual import ResidualSettings

    settings = ResidualSettings(steps=STEPS, batch_size=1, snapshot_every=1, validation_draws=1)
    return replace(TrainRequest("toy", photos, "cat", out, settings, resume=resume), **changed)


def toy_model() -> Any:
    """The core tests' network as a base model; a photo's latent is its four corners."""
    import torch

    from infusion_core.embedded.model import EmbeddedModel
    from tests.core.toy import ToyDenoiser, prompts

    class Toy(EmbeddedModel):
        def encode(self, photos: Sequence[Any]) -> torch.Tensor:
            corners = [p.convert("RGBA").resize((2, 2)).tobytes() for p in photos]
            pixels = torch.tensor([list(c) for c in corners], dtype=torch.float32).reshape(-1, 2, 2, 4)
            return pixels.permute(0, 3, 1, 2) / 127.5 - 1

    denoiser = ToyDenoiser()
    denoiser.unet = torch.nn.ModuleList(list(denoiser.children()))
    encoded = prompts(100)
    text = SimpleNamespace(
        word_tokens=lambda _: [], encode_alike=lambda captions, _: encoded[: len(captions)], encoders=()
    )
    return Toy("toy", denoiser, torch.nn.Linear(2, 2), text, None, 2)  # type: ignore[arg-type]


if __name__ == "__main__":
    _serve()
