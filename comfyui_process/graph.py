"""Workflows in the API format, and what running one leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class PromptError(Exception):
    """The host refused a prompt or a node raised; holds the host's own message."""


@dataclass(frozen=True)
class Output:
    """Output `index` of a node."""

    node: str
    index: int = 0

    @property
    def link(self) -> list[Any]:
        """The output as an input of another node."""
        return [self.node, self.index]

    def __getitem__(self, index: int) -> Output:
        return Output(self.node, index)


@dataclass
class Graph:
    """A workflow in the API format."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, class_type: str, **inputs: Any) -> Output:
        """Add a node; inputs are values or outputs of other nodes."""
        name = str(len(self.nodes) + 1)
        links = {k: v.link if isinstance(v, Output) else v for k, v in inputs.items()}
        self.nodes[name] = {"class_type": class_type, "inputs": links}
        return Output(name)


@dataclass
class Ran:
    """What a prompt left: UI outputs by node, the messages of the websocket, and how many preview pictures came."""

    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: int = 0
