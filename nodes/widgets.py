"""What users write into text widgets."""

from __future__ import annotations

import re


def lines_of(text: str) -> list[str]:
    """The lines of a text widget that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_words(text: str) -> list[str]:
    """The words of a text widget, separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parts_of(text: str) -> list[str]:
    """The parts of a text widget that hold something, separated by commas, semicolons or lines."""
    return [part.strip() for part in re.split(r"[,;\n]+", text) if part.strip()]
