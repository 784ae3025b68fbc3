"""What a run tells the page; `web/notices.js` shows it."""

from __future__ import annotations

from typing import Any

import server
from comfy_execution.utils import get_executing_context

from .memory import execution


def tell(text: str) -> None:
    """Show a text on the node that is being executed, in place of what was told before.

    Without a node, a server or such a page nothing happens.
    """
    instance, context = getattr(server.PromptServer, "instance", None), get_executing_context()
    if context is not None and instance is not None and instance.client_id is not None:
        instance.send_progress_text(text, context.node_id, instance.client_id)


def node() -> str:
    """The id of the node that is being executed; empty outside of one."""
    context = get_executing_context()
    return "" if context is None else str(context.node_id)


def warn(node: str, text: str) -> None:
    """Show a warning on a node and beside the graph, until the next run begins, on the page that queued the run.

    Without a node, a server or such a page nothing happens.

    Args:
        node: the node's unique id in the running prompt; in a subgraph a path such as ``12:3``; empty for none.
        text: one or two sentences: what happened, and what to do.
    """
    instance = getattr(server.PromptServer, "instance", None)
    if node and instance is not None and instance.client_id is not None:
        told = {"node": node, "type": _type_of(node, instance), "text": text, "prompt_id": execution()}
        instance.send_sync("infusion.warning", told, instance.client_id)


def _type_of(node: str, instance: Any) -> str:
    """The type of a node of a running prompt; the page may show another graph, in which the id is another node's."""
    prompts = [running[2] for running in instance.prompt_queue.currently_running.values()]
    return next((str(prompt[node]["class_type"]) for prompt in prompts if node in prompt), "")
