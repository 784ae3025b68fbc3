"""Rows that other nodes' patches add at cross-attention, as attention couple does for the prompts of regions.

Where each row comes from is found by a trial: the patches run once on numbers that say which row and position they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError
from .mentions import Mentions
from .options import described
from .rows import BaseRow, Batch, Entry

InputPatch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], tuple[Tensor, Tensor, Tensor]]
_TAG = 12345.0
_EXACT = 1e-3


@dataclass(frozen=True)
class GrownRow:
    """One row as patches left it.

    Attributes:
        source: the row whose query inputs it has.
        positions: for each of its context positions, that of the source's value it has; None: it has another text.
    """

    source: int
    positions: tuple[int, ...] | None


@dataclass(frozen=True)
class Grown:
    """The rows of one forward after other nodes' patches.

    Attributes:
        rows: each as they left it.
        texts: for each row with a text of its own, where words stand in it, if it is known.
    """

    rows: Sequence[GrownRow]
    texts: Sequence[Mentions | None]

    def regions(self, batch: Batch) -> list[tuple[int, Mentions]]:
        """The rows with a known text of their own and its mentions; those of the base stream stay as they are."""
        return [
            (number, text)
            for number, (row, text) in enumerate(zip(self.rows, self.texts, strict=True))
            if text is not None and not isinstance(batch.entry(row.source)[1], BaseRow)
        ]

    def taken_over(self, own: Mapping[int, Mentions]) -> list[tuple[int, Mentions]]:
        """The rows with the text of a row that was there before, by whose mentions `own`; where they stand now."""
        return [
            (number, own[row.source].seen_at(row.positions))
            for number, row in enumerate(self.rows)
            if row.positions is not None and row.source in own
        ]

    def named(self, batch: Batch) -> dict[Entry, frozenset[str]]:
        """Keys of what the regions of each conditioning name."""
        found: dict[Entry, frozenset[str]] = {}
        for row, text in self.regions(batch):
            entry = batch.entry(self.rows[row].source)
            found[entry] = found.get(entry, frozenset()) | text.spans.keys()
        return found


def trace(
    patches: Sequence[InputPatch], query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]
) -> list[GrownRow]:
    """Where the rows that patches make come from.

    Args:
        patches: other nodes'.
        query, key, value: (R, N, C), (R, L, D), (R, L, D), what the patches get.
        extra: the host's options; a copy is passed on.

    Raises:
        InfusionError: the patches mix rows.
    """
    rows, length = value.shape[:2]
    numbers = torch.arange(rows, device=value.device, dtype=torch.float32)
    q = (numbers + 1).view(-1, 1, 1).expand(query.shape)
    v = torch.ones(value.shape, device=value.device)
    v[..., 1] = numbers[:, None] + 1
    v[..., 2] = torch.arange(length, device=value.device) + 1.0
    v[..., 3] = _TAG
    k, options = key, dict(extra)
    for patch in patches:
        q, k, v = patch(q, k, v, options)
    if not torch.equal(q, q[:, :1, :1].expand(q.shape)) or not torch.equal(q, q.round()):
        names = ", ".join(map(described, patches))
        raise InfusionError(f"{names} mixes the rows of cross-attention, so no concept can be bound; leave it out")
    sources = (q[:, 0, 0] - 1).long().tolist()
    return [GrownRow(source, _positions(row)) for source, row in zip(sources, v.cpu(), strict=True)]


def _positions(row: Tensor) -> tuple[int, ...] | None:
    """What the numbers of one row (L, D) say of its positions."""
    ratios = row[:, 1:4] / row[:, :1]
    if not torch.isfinite(ratios).all() or (ratios[:, 2] / _TAG - 1).abs().max() > _EXACT:
        return None
    return tuple((ratios[:, 1] - 1).round().long().tolist())
