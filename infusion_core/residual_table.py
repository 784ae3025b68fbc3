"""Concepts by the thousand: one matrix, a row of it a concept, so that any few of them are one gather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .residuals import ConceptResidual, Layout, Space, place_of, space_of
from .sites import Site


@dataclass(frozen=True)
class Kind:
    """What concepts of one table have in common.

    Attributes:
        layout, bins, tokens, context_width: see `ConceptResidual`.
        widths: of every place, with its name, in the order of the numbers.
    """

    layout: Layout
    bins: int
    tokens: int
    context_width: int
    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, residual: ConceptResidual) -> Kind:
        """The kind of a concept."""
        widths = tuple(sorted((place, tensor.shape[-1]) for place, tensor in residual.tensors.items()))
        return cls(residual.layout, residual.bins, residual.tokens, residual.context_width, widths)

    @property
    def space(self) -> Space:
        """What residuals are added to, see `ConceptResidual`."""
        return space_of(self.layout)

    @property
    def numbers(self) -> int:
        """Numbers of one concept."""
        return self.bins * self.tokens * sum(width for _, width in self.widths)


@dataclass(frozen=True)
class ResidualTable:
    """Residuals of G concepts of one kind. In layout ``block``, 10,000 of SD1.5 are 108 MB in half precision.

    Attributes:
        kind: of all of them.
        numbers: a row each, (G, numbers).
    """

    kind: Kind
    numbers: Tensor

    @classmethod
    def of(cls, residuals: Sequence[ConceptResidual], device: torch.device | str, dtype: torch.dtype) -> ResidualTable:
        """A table of concepts of one kind, in their order.

        Args:
            residuals: one or more.
            device, dtype: of the table.
        """
        kind = Kind.of(residuals[0])
        rows = [torch.cat([r.tensors[place].flatten() for place, _ in kind.widths]) for r in residuals]
        return cls(kind, torch.stack([row.to(device, dtype) for row in rows]))

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The numbers by place, (G, bins, tokens, width) each; no copies."""
        return dict(self._by_place(self.numbers))

    def at(self, site: Site) -> Tensor | None:
        """The residuals that act at a site, (G, bins, tokens, width), or None."""
        return self.tensors.get(place_of(self.kind.layout, site))

    def row(self, index: int) -> dict[str, Tensor]:
        """One concept's residuals by place, (bins, tokens, width) each; no copies."""
        return dict(self._by_place(self.numbers[index]))

    def _by_place(self, numbers: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Numbers (..., numbers) cut into places."""
        bins, tokens = self.kind.bins, self.kind.tokens
        parts = torch.split(numbers, [bins * tokens * width for _, width in self.kind.widths], -1)
        for (place, width), part in zip(self.kind.widths, parts, strict=True):
            yield place, part.reshape(*numbers.shape[:-1], bins, tokens, width)


def tables_of(
    residuals: Sequence[ConceptResidual], device: torch.device | str, dtype: torch.dtype
) -> tuple[list[ResidualTable], list[tuple[int, int]]]:
    """Concepts of any kinds in as many tables as there are kinds.

    Args:
        residuals: from wherever they are.
        device, dtype: of the tables.

    Returns:
        The tables, and for each concept the number of its table and its row there.
    """
    by_kind: dict[Kind, list[ConceptResidual]] = {}
    places = []
    for residual in residuals:
        alike = by_kind.setdefault(kind := Kind.of(residual), [])
        places.append((list(by_kind).index(kind), len(alike)))
        alike.append(residual)
    return [ResidualTable.of(alike, device, dtype) for alike in by_kind.values()], places
