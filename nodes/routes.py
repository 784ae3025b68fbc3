"""What the page asks the server: the facts of a concept file, to show beside the dropdown."""

from __future__ import annotations

import asyncio
from typing import Any

import server
from aiohttp import web

from ..infusion_core.errors import InfusionError
from ..infusion_core.residual_file import thumbnail_url
from ..infusion_core.residuals import ConceptResidual
from . import library


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
    try:
        loaded = await asyncio.to_thread(library.load, name, 1.0)
        return web.json_response(facts(loaded.residual))
    except (InfusionError, FileNotFoundError) as error:
        return web.json_response({"error": str(error)}, status=404)
