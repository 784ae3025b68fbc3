"""Infusion for ComfyUI. Everything is imported when the host asks for it."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The V3 entry point of the pack."""
    from .nodes import InfusionExtension

    return InfusionExtension()
