"""Inputs that every node that trains has."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.compat import ADVANCED


def shared_inputs() -> list[Any]:
    """``checkpointing`` and ``flip``."""
    return [
        io.Boolean.Input(
            "checkpointing", default=False, optional=True,
            tooltip="Needs less memory and takes longer; what is learned is the same.", **ADVANCED,
        ),
        io.Boolean.Input(
            "flip", default=False, optional=True,
            tooltip="Show each photo mirrored as well. Not for a subject with letters, or another left and right.",
            **ADVANCED,
        ),
    ]  # fmt: skip
