"""Differences between the supported versions of ComfyUI."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from typing import Any

from comfy_api.latest import io


def schema(**values: Any) -> io.Schema:
    """A node schema without the fields that this version of the host does not know yet."""
    known = {f.name for f in fields(io.Schema)}
    return io.Schema(**{k: v for k, v in values.items() if k in known})


ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in signature(io.Input.__init__).parameters else {}
"""What marks an input as one for experts, where the host can fold those away."""


def curve_input(name: str, **values: Any) -> io.Input:
    """A text widget for points of a curve; where the host has curves, one may be connected instead."""
    text = io.String.Input(name, **values)
    return io.MultiType.Input(text, types=[io.Curve], optional=text.optional) if hasattr(io, "Curve") else text


def curve_points(curve: Any) -> tuple[tuple[float, float], ...]:
    """A host's CURVE as points, so many that straight lines between them follow it."""
    from comfy_api.input import CurveInput  # where there is a CURVE there is this

    known = CurveInput.from_raw(curve)
    shares = {*(share for share, _ in known.points), *(i / 100 for i in range(101))}
    return tuple((share, known.interp(share)) for share in sorted(shares))
