"""Prompts are known by their states: the very tensor, or, in copies and in parts of others, what is in it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from .mentions import MENTIONS, Mentions, Texts, joined

CHUNK = 77  # positions that a CLIP reads at once; whoever joins prompts joins whole chunks
SKETCH = 32  # numbers that stand for a chunk
SAME = 0.01  # relative distance of sketches up to which states are the same: bfloat16 moves them by 0.001
_LET_GO = 4096  # prompts kept before those are dropped that nobody holds any more
_FOUND = "infusion_found"  # beside states in the sampler: what `mentions_in` found


@dataclass
class _Prompt:
    """An encoded prompt: sketches (chunks, SKETCH) of its states and, where they differ, of its values alone."""

    forms: tuple[tuple[Tensor, Mentions], ...]
    states: weakref.ref[Tensor]
    execution: str | None
    copied: bool  # it was given out without its mentions, so that only its states can tell
    used: bool = False


class Memory:
    """The prompts that one patch's CLIP has encoded.

    Tensors are known as long as they live. What is in them is remembered while the host holds them, and during the
    execution in which they were encoded; so an old prompt never counts, and what is kept is a few numbers a chunk.
    """

    def __init__(self) -> None:
        self._known: Any = WeakTensorKeyDictionary()
        self._prompts: list[_Prompt] = []

    def __deepcopy__(self, memo: object) -> Memory:
        return self  # one memory for all clones of a MODEL and its CLIP

    def add(self, states: Tensor, mentions: Mentions, copied: bool = False) -> None:
        """Remember the states (1, L, D) of an encoded prompt; see `_Prompt.copied`."""
        self._known[states] = (mentions,)
        forms = [(sketch(states[0]), mentions)]
        if mentions.interleaved:
            forms.append((sketch(states[0, 1::2]), mentions.values))
        self._prompts.append(_Prompt(tuple(forms), weakref.ref(states), execution(), copied))
        if len(self._prompts) > _LET_GO:
            self._prompts = [p for p in self._prompts if p.states() is not None or p.execution == execution()]

    def begin_run(self) -> None:
        """A sampling run begins: forget prompts of earlier executions that were at hand in a run and are gone."""
        now = execution()
        self._prompts = [p for p in self._prompts if p.execution == now or not p.used or p.states() is not None]
        for prompt in self._prompts:
            prompt.used = prompt.used or prompt.execution == now

    def names(self, key: str) -> bool:
        """Whether a prompt that is remembered names a concept."""
        return any(key in prompt.forms[0][1].spans for prompt in self._prompts)

    def of(self, states: Tensor) -> Texts | None:
        """The texts of this very tensor, if it is known."""
        found: Texts | None = self._known.get(states)
        return found

    def keep(self, states: Tensor, texts: Texts) -> None:
        """Know this very tensor (N, L, D) from now on, a text for each row."""
        self._known[states] = texts

    def find(self, states: Tensor, first: int = 0, whole: bool = False) -> Mentions | None:
        """Mentions of the prompts that states (L, D) are made of, from position `first` on; None: of no known one.

        Where several prompts have the same states the latest counts. A prompt that is all of the states counts only
        if it was given out without its mentions, or if `whole`.
        """
        sketches, found, at = sketch(states[first:]), [], 0
        while at < len(sketches):
            best = self._nearest(sketches[at:], whole or at > 0 or first > 0)
            if best is not None:
                found.append(best[1].after(first + at * CHUNK))
            at += 1 if best is None else len(best[0])
        return joined(found, len(states)) if found else None

    def _nearest(self, sketches: Tensor, whole: bool) -> tuple[Tensor, Mentions] | None:
        """The prompt that states begin with."""
        best, distance = None, SAME
        for form, allowed in self._forms(whole):
            count = len(form[0])
            if count < len(sketches) or (count == len(sketches) and allowed):
                away = float(((sketches[:count] - form[0]).norm(dim=1) / form[0].norm(dim=1)).max())
                if away < distance:
                    best, distance = form, away - 1e-6
        return best

    def _forms(self, whole: bool) -> Iterator[tuple[tuple[Tensor, Mentions], bool]]:
        for prompt in reversed(self._prompts):
            for form in prompt.forms:
                yield form, whole or prompt.copied


def mentions_in(cond: dict[str, Any], memory: Memory) -> Texts:
    """The texts of a conditioning, as the sampler has it; None for one of which the patch's CLIP encoded no part.

    The host gives negatives without an area a copy of a positive's dict that holds the negative's text states; what
    travels beside the states counts only where it belongs to them. The answer is kept beside the conditioning.
    """
    known = cond.setdefault(_FOUND, {})
    if id(memory) not in known:
        known[id(memory)] = _find(cond, memory)
    found: Texts = known[id(memory)]
    return found


def _find(cond: dict[str, Any], memory: Memory) -> Texts:
    text = cond["model_conds"].get("c_crossattn")
    if text is None:
        return (None,)
    states, given = text.cond, cond.get("cross_attn")
    if given is None or given.shape != states.shape or not torch.equal(given.to(states), states):
        return _recognized(states, None, memory)
    known = memory.of(given)
    if known is None:
        known = _recognized(given, cond.get(MENTIONS), memory)
        if any(text is not None for text in known):
            memory.keep(given, known)
    return known


def _recognized(states: Tensor, beside: Texts | None, memory: Memory) -> Texts:
    """The texts of states (N, L, D) that other nodes have made, of what travelled beside them and of what is in them.

    Where rows of several conditionings were joined, what lies beside them is one's own, so each is looked up.
    """
    if beside is not None and len(beside) == len(states):
        return tuple(_of_row(*row, memory) for row in zip(states, beside, strict=True))
    return tuple(memory.find(row, whole=len(states) > 1) for row in states)


def _of_row(states: Tensor, beside: Mentions | None, memory: Memory) -> Mentions | None:
    """Mentions of one row of states (L, D)."""
    length = len(states)
    if beside is None or length < beside.length or not states.any():
        return memory.find(states)
    rest = memory.find(states, beside.length) if length > beside.length else None
    return joined([beside] if rest is None else [beside, rest], length)


def execution() -> str | None:
    """The execution of a graph that is going on."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def sketch(states: Tensor) -> Tensor:
    """A few numbers for each chunk of states (L, D), (chunks, SKETCH): random projections of their directions.

    Neither another precision nor a scale changes them by more than `SAME`, and another text does.
    """
    directions = F.normalize(states.float(), dim=-1)
    projected = directions @ _projection(states.shape[-1], str(states.device))
    padded = F.pad(projected, (0, 0, 0, -len(states) % CHUNK)).reshape(-1, CHUNK, SKETCH)
    return torch.einsum("cps,ps->cs", padded, _projection(SKETCH, str(states.device), CHUNK).T.to(padded)).cpu()


@cache
def _projection(width: int, device: str, columns: int = SKETCH) -> Tensor:
    """Fixed random numbers (width, columns)."""
    drawn = torch.randn(width, columns, generator=torch.Generator().manual_seed(width))
    return drawn.to(device)
