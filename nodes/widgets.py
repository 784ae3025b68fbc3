"""What users write into text widgets, and what they connect to inputs that take a list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..infusion_core.errors import InfusionError


def lines_of(text: str) -> list[str]:
    """The lines of a text widget that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_words(text: str) -> list[str]:
    """The words of a text widget, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parts_of(text: str) -> list[str]:
    """The parts of a text widget that hold something, separated by commas, semicolons or lines."""
    return [part.strip() for part in re.split(r"[,;\n]+", text) if part.strip()]


def only(node: str, given: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The one value of each input that takes no list, where the host gives every input as one.

    Raises:
        InfusionError: an input has several.
    """
    for name, values in given.items():
        if len(values) != 1:
            raise InfusionError(
                f"{node} takes a list of images and masks only, but {name} has {len(values)} values; connect one, or "
                f"use a node for each"
            )
    return {name: values[0] for name, values in given.items()}
