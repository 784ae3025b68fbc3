"""A running ComfyUI server, and a client that drives it as its page does."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .graph import Graph, PromptError, Ran
from .host import REPOSITORY, command

FOLDERS = ("custom_nodes", "models/loras", "models/infusion", "input", "output", "user")


class Server:
    """ComfyUI in a process of its own, with this pack in a fresh base directory.

    Args:
        host: ComfyUI's folder.
        base: of the server's models, input and output; made if it is not there.
        packs: more custom nodes, folders by name.
        options: more options of ComfyUI's main.py.

    Raises:
        RuntimeError: it did not start; holds the end of its log.
    """

    def __init__(
        self, host: Path, base: Path, packs: Mapping[str, Path] | None = None, options: Sequence[object] = ()
    ) -> None:
        self.base, self.client = base, uuid.uuid4().hex
        for name in FOLDERS:
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in {"infusion": REPOSITORY, **(packs or {})}.items():
            (base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)
        self.port, self.log = _free_port(), base / "server.log"
        self._host, self._started = host, command(
            host, host / "main.py", "--cpu", "--base-directory", base, "--port", self.port,
            "--database-url", "sqlite:///:memory:", "--disable-api-nodes", *options,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start the process, again if it was ended.

        Raises:
            RuntimeError: it did not start; holds the end of its log.
        """
        self._file = self.log.open("a")
        self._process = subprocess.Popen(self._started, cwd=self._host, stdout=self._file, stderr=subprocess.STDOUT)
        self._wait()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def output(self) -> Path:
        """Its output folder."""
        return self.base / "output"

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._ended()

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._process.kill()
        self._ended()

    def _ended(self) -> None:
        self._process.wait(300)
        self._file.close()

    def read(self, path: str) -> str:
        """A page's text."""
        with urllib.request.urlopen(self.address + path) as answer:
            text: str = answer.read().decode()
            return text

    def get(self, path: str) -> Any:
        """What a route answers."""
        return json.loads(self.read(path))

    def post(self, path: str, body: Any) -> Any:
        """Send JSON to a route.

        Raises:
            PromptError: the host refused it.
        """
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from None
        return json.loads(text) if text else None

    def run(
        self, graph: Graph, interrupt_at: int | None = None, timeout: float = 1500,
        interrupt: Callable[[], object] | None = None,
    ) -> Ran:  # fmt: skip
        """Queue a prompt and follow it on the websocket to its end.

        Args:
            graph: what to run.
            interrupt_at: press stop when a node reports this progress.
            timeout: seconds.
            interrupt: what to do then instead.

        Raises:
            PromptError: refused, failed or interrupted.
        """
        import websocket  # of the extra `dev`; benchmarks only start and stop a server

        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}"
        channel = websocket.create_connection(address, timeout=timeout)
        try:
            queued = self.post("/prompt", {"prompt": graph.nodes, "client_id": self.client})
            stop = interrupt or partial(self.post, "/interrupt", {})
            return self._follow(channel, queued["prompt_id"], interrupt_at, stop, time.monotonic() + timeout)
        finally:
            channel.close()

    def _follow(
        self, channel: Any, prompt: str, interrupt_at: int | None, stop: Callable[[], object], deadline: float
    ) -> Ran:
        ran = Ran()
        while time.monotonic() < deadline:
            received = channel.recv()
            if isinstance(received, bytes):
                ran.received(received)
                continue
            message = json.loads(received)
            data = message.get("data", {})
            if data.get("prompt_id") != prompt:
                continue
            ran.messages.append(message)
            kind = message["type"]
            if kind == "progress" and interrupt_at is not None and data["value"] >= interrupt_at:
                interrupt_at = None
                stop()
            if kind == "executed":
                ran.outputs[data["node"]] = data["output"]
            if kind in ("execution_error", "execution_interrupted"):
                raise PromptError(data.get("exception_message", kind))
            if kind == "execution_success":
                return ran
        raise TimeoutError(f"the prompt did not end; see {self.log}")

    def _wait(self) -> None:
        for _ in range(2400):
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
