"""Workflows in the API format, and what running one leaves."""

from __future__ import annotations

import struct
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


_TEXT = 3  # kind of a binary message that is a node's text; all others are pictures


@dataclass
class Ran:
    """What a prompt left.

    Attributes:
        outputs: for the page, by node.
        messages: of the websocket.
        previews: how many preview pictures came.
        texts: what nodes said while they ran, in order.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: int = 0
    texts: list[str] = field(default_factory=list)

    def received(self, message: bytes) -> None:
        """Take a binary message: its kind, then for a text the length of the node's id, the id and the text."""
        kind, length = struct.unpack(">II", message[:8])
        if kind == _TEXT:
            self.texts.append(message[8 + length :].decode())
        else:
            self.previews += 1
