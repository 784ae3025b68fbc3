"""One replica of the server under Ray Serve: HTTP in, batches for the artist, PNG or JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from infusion_cli.generate import sampling_of
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import Wish
from infusion_core.errors import InfusionError
from infusion_core.library import UnknownConceptError

from .artist import Artist, Drawn
from .asked import Limits, read_asked

DRAW, HEALTH, CONCEPTS = "/draw", "/health", "/concepts"
NOTE = "infusion-note"  # header: what is odd about a picture
AGAIN_IN = 1  # seconds, for a client that was turned away


@dataclass(frozen=True)
class Service:
    """How a replica serves.

    Attributes:
        model, config: of the base model, see `load_model`.
        threads: of one replica.
        batch: pictures per pass at most.
        wait: seconds that a picture waits for others to share its pass.
        limits: of requests.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    model: str
    config: Path | None
    threads: int
    batch: int
    wait: float
    limits: Limits
    sampling: dict[str, Any] = field(default_factory=dict)


class StatusError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        why: one sentence.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Replica:
    """What is one actor: an artist, and those who wait for it.

    Args:
        service: how it serves.
        library: Ray's reference to a `ConceptLibrary`, which is sent to each machine once.
    """

    def __init__(self, service: Service, library: Any) -> None:
        torch.set_num_threads(service.threads)
        self._service, self._waiting, self._refused, self._why = service, 0, list[str](), ""
        self._draw.set_max_batch_size(service.batch)
        self._draw.set_batch_wait_timeout_s(service.wait)
        try:
            model = load_model(service.model, config=service.config)
            fit, self._refused = ray.get(library).fitting(model.denoiser.base)
            self._artist = Artist(model, fit, sampling_of(model, service.sampling))
        except InfusionError as error:  # told when it is asked for: Ray would try again and again
            self._why = str(error)

    def told(self) -> tuple[str, list[str], int]:
        """Why it cannot serve, if so; what is odd about the concepts; and how many there are."""
        return self._why, self._refused, 0 if self._why else len(self._artist.library)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._answer(request)
        except StatusError as error:
            again = {"retry-after": str(AGAIN_IN)} if error.status == 503 else None
            return JSONResponse({"error": error.why}, error.status, headers=again)

    async def _answer(self, request: Request) -> Response:
        methods = {DRAW: "POST", HEALTH: "GET", CONCEPTS: "GET"}
        path = request.url.path
        if path not in methods:
            raise StatusError(404, f"there is nothing at this address; ask {DRAW}, {HEALTH} or {CONCEPTS}")
        if request.method != methods[path]:
            raise StatusError(405, f"{path} takes {methods[path]} requests only")
        library = self._artist.library
        if path == HEALTH:
            told = {"status": "ok", "model": self._artist.model.name, "concepts": len(library)}
            return JSONResponse(told | {"waiting": self._waiting})
        if path == CONCEPTS:
            named = [{"name": name, "word": shelved.head.word} for name, shelved in library.shelved.items()]
            return JSONResponse({"concepts": named})
        if self._waiting >= self._service.limits.waiting:
            raise StatusError(503, f"{self._waiting} pictures are waited for already; ask again later")
        self._waiting += 1
        try:
            return await self._picture(await self._body(request))
        finally:
            self._waiting -= 1

    async def _body(self, request: Request) -> bytes:
        """Raises StatusError: it is too large; no more of it is read then."""
        most = self._service.limits.body
        told, body = request.headers.get("content-length", ""), bytearray()
        if not (told.isdecimal() and int(told) > most):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise StatusError(413, f"the body is larger than {most} bytes; send a shorter one")

    async def _picture(self, body: bytes) -> Response:
        try:
            wish, note = self._artist.wish(read_asked(body, self._service.limits))
        except UnknownConceptError as error:
            raise StatusError(404, str(error)) from error
        except InfusionError as error:
            raise StatusError(400, str(error)) from error
        drawn: Drawn = await self._draw(wish)
        if drawn.png is None:
            raise StatusError(500, f"the picture could not be drawn: {drawn.why}")
        headers = {NOTE: note.encode("ascii", "backslashreplace").decode()} if note else None
        return Response(drawn.png, media_type="image/png", headers=headers)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _draw(self, wishes: Sequence[Wish]) -> list[Drawn]:
        """One batch; meanwhile others are read, and wait."""
        return await asyncio.to_thread(self._artist.draw, wishes)
