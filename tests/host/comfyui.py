"""A real ComfyUI server and a client that drives it as its page does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

from infusion_core.embedded.tinyworld import words

REPOSITORY = Path(__file__).resolve().parents[2]


def find_host() -> Path | None:
    """COMFYUI_PATH, then the ComfyUI this folder is installed in, then ~/comfy/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not (Path(named) / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {named}, but there is no main.py in it")
        return Path(named)
    for folder in (REPOSITORY.parent.parent, Path.home() / "comfy" / "ComfyUI"):
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder
    return None


def host_python(host: Path) -> str:
    """The host's own interpreter if it has a virtual environment, else this one."""
    for candidate in (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe"):
        if (host / candidate).exists():
            return str(host / candidate)
    return sys.executable


class PromptError(Exception):
    """The host refused a prompt or a node raised; holds the host's own message."""


@dataclass
class Graph:
    """A workflow in the API format."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> Output:
        """Add a node; inputs are values or outputs of other nodes."""
        name = str(len(self.nodes) + 1)
        links = {k: v.link if isinstance(v, Output) else v for k, v in inputs.items()}
        self.nodes[name] = {"class_type": class_type, "inputs": links}
        return Output(name)


@dataclass(frozen=True)
class Output:
    """Output `index` of a node."""

    node: str
    index: int = 0

    @property
    def link(self) -> list[Any]:
        return [self.node, self.index]

    def __getitem__(self, index: int) -> Output:
        return Output(self.node, index)


@dataclass
class Ran:
    """What a prompt left: UI outputs by node, and the messages of the websocket."""

    outputs: dict[str, Any]
    messages: list[dict[str, Any]]
    previews: int


class Server:
    """ComfyUI in a process of its own, with this pack and the test pack in a fresh base directory."""

    def __init__(self, host: Path, base: Path) -> None:
        self.base, self.client = base, uuid.uuid4().hex
        for folder in ("custom_nodes", "models/loras", "models/infusion", "input", "output", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        vocabulary = {"start": words.START, "end": words.END, "words": {w: words.word_ids(w)[0] for w in words.WORDS}}
        (base / "input" / "tinyworld-words.json").write_text(json.dumps(vocabulary))
        (base / "custom_nodes" / "infusion").symlink_to(REPOSITORY, target_is_directory=True)
        (base / "custom_nodes" / "infusion_test").symlink_to(REPOSITORY / "tests" / "host" / "pack")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = base / "server.log"
        launcher = Path(__file__).with_name("launcher.py")
        command = [
            host_python(host), str(launcher), str(host), str(host / "main.py"), "--cpu", "--base-directory", str(base),
            "--port", str(self.port), "--database-url", "sqlite:///:memory:", "--disable-api-nodes",
            "--extra-model-paths-config", str(self._extra_paths()),
        ]  # fmt: skip
        self._file = self.log.open("w")
        self._process = subprocess.Popen(command, cwd=host, stdout=self._file, stderr=subprocess.STDOUT)
        self._wait()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> Path:
        return self.base / "output"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._file.close()

    def read(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path) as answer:
            text: str = answer.read().decode()
            return text

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from None
        return json.loads(text) if text else None

    def run(self, graph: Graph, interrupt_at: int | None = None, timeout: float = 200) -> Ran:
        """Queue a prompt and follow it on the websocket to its end.

        Args:
            graph: what to run.
            interrupt_at: press stop when a node reports this progress.
            timeout: seconds.

        Raises:
            PromptError: refused, failed or interrupted.
        """
        channel = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=timeout)
        try:
            queued = self.post("/prompt", {"prompt": graph.nodes, "client_id": self.client})
            return self._follow(channel, queued["prompt_id"], interrupt_at, time.monotonic() + timeout)
        finally:
            channel.close()

    def _follow(self, channel: Any, prompt: str, interrupt_at: int | None, deadline: float) -> Ran:
        ran = Ran({}, [], 0)
        while time.monotonic() < deadline:
            received = channel.recv()
            if isinstance(received, bytes):
                ran.previews += 1
                continue
            message = json.loads(received)
            data = message.get("data", {})
            if data.get("prompt_id") != prompt:
                continue
            ran.messages.append(message)
            kind = message["type"]
            if kind == "progress" and interrupt_at is not None and data["value"] >= interrupt_at:
                interrupt_at = None
                self.post("/interrupt", {})
            if kind == "executed":
                ran.outputs[data["node"]] = data["output"]
            if kind in ("execution_error", "execution_interrupted"):
                raise PromptError(data.get("exception_message", kind))
            if kind == "execution_success":
                return ran
        raise TimeoutError(f"the prompt did not end; see {self.log}")

    def _extra_paths(self) -> Path:
        """An extra_model_paths.yaml that names BASE/elsewhere/concepts."""
        (self.base / "elsewhere" / "concepts").mkdir(parents=True)
        config = self.base / "extra.yaml"
        config.write_text(f"mine:\n  base_path: {self.base / 'elsewhere'}\n  infusion: concepts\n")
        return config

    def _wait(self) -> None:
        for _ in range(240):
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")
