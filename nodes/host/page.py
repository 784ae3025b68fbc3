"""What the server tells the page."""

from __future__ import annotations

import server

from .memory import execution


def warn(node: str, text: str) -> None:
    """Show a warning on a node and as a toast; nothing happens where there is no page."""
    instance = getattr(server.PromptServer, "instance", None)
    if instance is not None and node:
        instance.send_sync("infusion.warning", {"node": node, "text": text, "prompt_id": execution()})
