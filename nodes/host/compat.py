"""Differences between the supported versions of ComfyUI."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io


def schema(**values: Any) -> io.Schema:
    """A node schema without the fields that this version of the host does not know yet."""
    known = {f.name for f in fields(io.Schema)}
    return io.Schema(**{k: v for k, v in values.items() if k in known})


def box_input(name: str, tooltip: str) -> list[io.Input]:
    """A socket for boxes in pictures, where the host has boxes at all."""
    kind = getattr(io, "BoundingBox", None)
    return [] if kind is None else [kind.Input(name, optional=True, force_input=True, tooltip=tooltip)]
