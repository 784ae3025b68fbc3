"""What the page asks the server: the facts of a concept file, to show beside the dropdown."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import server
from aiohttp import web

from ..infusion_core.errors import InfusionError, printable
from ..infusion_core.residuals import ConceptResidual
from ..infusion_core.thumbnails import thumbnail_url
from . import library

# Whatever the page asks at once, two files are read at a time, and the host's own threads stay free.
_READERS = ThreadPoolExecutor(2, "infusion-reader")


def facts(concept: ConceptResidual) -> dict[str, Any]:
    """Word, base, layout, steps and thumbnail (a data URL, or None) of a concept."""
    return {
        "word": concept.word,
        "base": concept.architecture,
        "layout": concept.layout,
        "steps": concept.training.get("steps", "?"),
        "thumbnail": None if concept.thumbnail is None else thumbnail_url(concept.thumbnail),
    }


def register() -> None:
    """Register the model folder and ``GET /infusion/concept?name=...``."""
    library.register_folders()
    instance = getattr(server.PromptServer, "instance", None)
    if instance is not None:  # absent when the host only lists nodes
        instance.routes.get("/infusion/concept")(_answer)


async def _answer(request: web.Request) -> web.Response:
    name = request.query.get("name", "")
    told, status = await asyncio.get_running_loop().run_in_executor(_READERS, _told_of, name)
    return web.json_response(told, status=status)


def _told_of(name: str) -> tuple[dict[str, Any], int]:
    """What a listed file holds or why it cannot be read, and the HTTP status of that."""
    if name not in library.names():
        return {"error": f"there is no concept file '{printable(name)}' in the list; press R to refresh it"}, 404
    try:
        return facts(library.load(name, 1.0).residual), 200
    except InfusionError as error:
        return {"error": str(error)}, 422
