"""Where the words of concepts stand in a conditioning, and how that is found again after other nodes had it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...infusion_core.tokens import Span

MENTIONS = "infusion_mentions"  # beside a conditioning's states: its `Mentions`
_FOUND = "infusion_found"  # beside them in the sampler: what `spans_in` found
_WATCHED = "word:"
REMEMBERED = 32
CHUNK = 77


@dataclass(frozen=True)
class Mentions:
    """Where words stand in one context.

    Attributes:
        spans: by the key of a concept or of a watched word.
        length: positions of the context.
    """

    spans: Mapping[str, tuple[Span, ...]]
    length: int

    def shifted(self, by: int) -> Mapping[str, tuple[Span, ...]]:
        """The spans of this context inside a longer one, `by` positions further."""
        return {key: tuple(tuple(p + by for p in span) for span in spans) for key, spans in self.spans.items()}

    @property
    def of_concepts(self) -> bool:
        """Whether a concept is among them, not only words that are watched."""
        return any(not key.startswith(_WATCHED) for key in self.spans)


def watched_key(word: str) -> str:
    """The key of a word that is watched, whether a concept's or not."""
    return f"{_WATCHED}{word}"


class Memory:
    """The states of the last prompts that named a concept: all that Concat keeps of its second input."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Mentions]] = []

    def __deepcopy__(self, memo: object) -> Memory:
        return self  # one memory for all clones of a MODEL and its CLIP

    def add(self, states: Tensor, mentions: Mentions) -> None:
        """Remember states (1, L, D); the oldest are forgotten."""
        self._kept = [*self._kept[1 - REMEMBERED :], (states[0].detach(), mentions)]

    def find(self, states: Tensor, first: int) -> dict[str, tuple[Span, ...]]:
        """Spans of remembered prompts that are part of `states` (1, L, D), from position `first` on; the latest counts.

        A remembered prompt that is all of `states` is not looked for: then its mentions have travelled with it.
        """
        found: dict[str, tuple[Span, ...]] = {}
        row, at = states[0], first
        while at < len(row):
            kept = next((k for k in reversed(self._kept) if _stands(k[0], row, at)), None)
            if kept is not None:
                for key, spans in kept[1].shifted(at).items():
                    found[key] = (*found.get(key, ()), *spans)
            at += len(kept[0]) if kept is not None else CHUNK
        return found


def spans_in(cond: dict[str, Any], memory: Memory) -> Mapping[str, tuple[Span, ...]]:
    """Spans of a conditioning, as the sampler has it, by key.

    The host gives negatives without an area a copy of a positive's dict that holds the negative's text states; what
    travels beside the states counts only where it belongs to them. The answer is kept beside the conditioning.
    """
    known = cond.setdefault(_FOUND, {})
    if id(memory) not in known:
        known[id(memory)] = _find(cond, memory)
    found: Mapping[str, tuple[Span, ...]] = known[id(memory)]
    return found


def _find(cond: dict[str, Any], memory: Memory) -> Mapping[str, tuple[Span, ...]]:
    text = cond["model_conds"].get("c_crossattn")
    if text is None:
        return {}
    states, mentions = text.cond, cond.get(MENTIONS)
    beside = cond.get("cross_attn")
    own = beside is not None and beside.shape == states.shape and torch.equal(beside.to(states), states)
    if mentions is None or not own or not states.any():
        return memory.find(states, 0)
    found = memory.find(states, mentions.length)
    return {key: (*mentions.spans.get(key, ()), *found.get(key, ())) for key in {*mentions.spans, *found}}


def _stands(kept: Tensor, row: Tensor, at: int) -> bool:
    """Whether remembered states are the part of a longer row that begins at a position."""
    part = row[at : at + len(kept)]
    return len(kept) < len(row) and part.shape == kept.shape and torch.equal(part, kept.to(part))
