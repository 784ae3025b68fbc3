"""The one exception type whose message is written for the user: it names the cause and the remedy."""

from __future__ import annotations


class InfusionError(ValueError):
    """Something the user can put right. The message is one line: what was wrong, then what to do."""

    __module__ = "infusion"  # hosts show the full name before the message; a path into this checkout helps nobody
