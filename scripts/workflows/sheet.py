"""A workflow as it is meant: nodes, and the titled parts they stand in."""

from __future__ import annotations

from dataclasses import dataclass, field

from comfyui_process.graph import Graph, Output

MODEL, PHOTOS, CONCEPT, PROMPT, PICTURE, NUMBER = "#3f789e", "#8A8", "#b06634", "#b58b2a", "#88A", "#a1309b"
ABOUT = "#8AA"


@dataclass(frozen=True)
class Part:
    """A group on the canvas.

    Attributes:
        title: of the group.
        colour: of the group, as ComfyUI's colour menu has it.
        note: explains the step, in markdown; stands above the nodes.
        columns: nodes from top to bottom, columns from left to right.
    """

    title: str
    colour: str
    note: str
    columns: tuple[tuple[Output, ...], ...] = ()


@dataclass(frozen=True)
class Download:
    """A model file that the page offers to download."""

    name: str
    url: str
    directory: str


@dataclass
class Sheet:
    """A workflow on the canvas.

    Attributes:
        graph: the nodes.
        columns: parts from top to bottom, columns of them from left to right.
        titles: of nodes that do not bear their type's, by node.
        downloads: what a node needs, by node.
    """

    graph: Graph = field(default_factory=Graph)
    columns: list[list[Part]] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    downloads: dict[str, Download] = field(default_factory=dict)

    def titled(self, node: Output, title: str) -> Output:
        """Give a node a title of its own."""
        self.titles[node.node] = title
        return node

    @property
    def parts(self) -> list[Part]:
        """All parts in reading order."""
        return [part for column in self.columns for part in column]
