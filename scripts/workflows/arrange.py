"""Where everything on a sheet goes: no node or group touches another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .sheet import Part, Sheet

TITLE, PAD, GAP, APART, HEAD = 30, 24, 48, 60, 40  # px: a node's title; within, between and above what a group holds
LETTER, LINE, LEAST = 5.8, 16, 92  # px of a note's text, and the least height the page gives a note
Rect = tuple[float, float, float, float]  # left, top of the body, width, height of the body


@dataclass
class Placed:
    """Rectangles in the canvas's px: of nodes by their name, of notes and groups in the order of the parts."""

    nodes: dict[str, Rect] = field(default_factory=dict)
    notes: list[Rect] = field(default_factory=list)
    groups: list[Rect] = field(default_factory=list)


def arrange(sheet: Sheet, sizes: Mapping[str, tuple[float, float]]) -> Placed:
    """Lay a sheet out from left to right.

    Args:
        sheet: what to lay out.
        sizes: width and height of every node's body, px.
    """
    placed, left = Placed(), 0.0
    for column in sheet.columns:
        width, top = max(_width(part, sizes) for part in column), 0.0
        for part in column:
            top = _part(part, sizes, placed, left, top, width) + APART
        left += width + APART
    return placed


def _part(
    part: Part, sizes: Mapping[str, tuple[float, float]], placed: Placed, left: float, top: float, width: float
) -> float:
    """Place a part; its lower edge."""
    inner = width - 2 * PAD
    note = (left + PAD, top + HEAD + TITLE, inner, note_height(part.note, inner))
    placed.notes.append(note)
    bottom = below = note[1] + note[3]
    x = left + PAD
    for column in part.columns:
        y, wide = below, max(sizes[node.node][0] for node in column)
        for node in column:
            y += GAP - TITLE / 2 + TITLE
            height = sizes[node.node][1]
            placed.nodes[node.node] = (x, y, sizes[node.node][0], height)
            y += height
        bottom, x = max(bottom, y), x + wide + GAP
    placed.groups.append((left, top, width, bottom + PAD - top))
    return bottom + PAD


def _width(part: Part, sizes: Mapping[str, tuple[float, float]]) -> float:
    wide = [max(sizes[node.node][0] for node in column) for column in part.columns] or [340.0]
    return sum(wide) + GAP * (len(wide) - 1) + 2 * PAD


def note_height(text: str, width: float) -> float:
    """What a note needs to show its text without a scroll bar; a heading has lines of twice the height."""
    letters = (width - 40) / LETTER
    lines = sum(
        2 * math.ceil(1.5 * len(line) / letters) if line.startswith("#") else math.ceil(len(line) / letters)
        for line in text.split("\n")
    )
    return max(LEAST, lines * LINE + 40)
