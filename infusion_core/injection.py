"""Concepts in one forward pass: which entries of the context receive which part of which residual (eq. 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .concepts import LoadedConcept
from .errors import InfusionError
from .residual_table import ResidualTable
from .residuals import ConceptResidual, Space
from .sites import Site


@dataclass(frozen=True)
class Injection(ABC):
    """Residuals at work in one forward pass.

    The index tensors are long, of one length M; entry m adds its numbers, at its strength, at
    ``context[row[m], position[m]]``.

    Attributes:
        rows: row of the batch.
        positions: index along the context.
        token: token within the word.
        bin: timestep bin.
    """

    rows: Tensor
    positions: Tensor
    token: Tensor
    bin: Tensor

    @abstractmethod
    def numbers(self, site: Site) -> Tensor | None:
        """What acts at a site, for each entry, (M, width), not scaled; None where nothing does."""

    @abstractmethod
    def scaled(self, added: Tensor, site: Site) -> Tensor:
        """What is added for each entry, (M, ...), at its strength."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """What the residuals are added to, see `ConceptResidual`."""

    @property
    @abstractmethod
    def context_width(self) -> int:
        """Width of the text context."""

    def add_to(self, target: Tensor, site: Site) -> Tensor:
        """`target` (R, L, width) with the residuals of `site` added; `target` itself when there are none there."""
        numbers = self.numbers(site)
        if numbers is None:
            return target
        chosen = self.scaled(numbers.to(target.dtype), site)  # (M, width)
        return target.index_put((self.rows, self.positions), chosen, accumulate=True)


@dataclass(frozen=True)
class ConceptInjection(Injection):
    """One concept; gradients flow into its residual.

    Attributes:
        concept: what is added.
    """

    concept: LoadedConcept

    def numbers(self, site: Site) -> Tensor | None:
        delta = self.concept.residual.at(site)
        return None if delta is None else delta[self.bin, self.token]

    def scaled(self, added: Tensor, site: Site) -> Tensor:
        return added * self.concept.strength_at(site)

    @property
    def space(self) -> Space:
        return self.concept.residual.space

    @property
    def context_width(self) -> int:
        return self.concept.residual.context_width


@dataclass(frozen=True)
class TableInjection(Injection):
    """Many concepts of one kind, each entry its own: one gather at a site, whoever's rows they are.

    Attributes:
        table: of the concepts.
        index: row of the table, (M,).
        strengths: of each entry, (M,), float32.
        in_blocks: the same for blocks in which a concept is scaled further.
    """

    table: ResidualTable
    index: Tensor
    strengths: Tensor
    in_blocks: Mapping[str, Tensor]

    def numbers(self, site: Site) -> Tensor | None:
        delta = self.table.at(site)
        return None if delta is None else delta[self.index, self.bin, self.token]

    def scaled(self, added: Tensor, site: Site) -> Tensor:
        strengths = self.in_blocks.get(site.block, self.strengths)
        return (added * strengths.reshape(-1, *[1] * (added.dim() - 1))).to(added.dtype)

    @property
    def space(self) -> Space:
        return self.table.kind.space

    @property
    def context_width(self) -> int:
        return self.table.kind.context_width


@dataclass(frozen=True)
class Aim:
    """A concept of a table in one row of a batch.

    Attributes:
        concept: at its strength.
        index: its row of the table.
        row: of the batch.
        spans: occurrences of its word there, each the context positions of the word's tokens.
        bin: timestep bin.
    """

    concept: LoadedConcept
    index: int
    row: int
    spans: Sequence[Sequence[int]]
    bin: int


def inject_table(table: ResidualTable, aims: Sequence[Aim], device: torch.device | str = "cpu") -> TableInjection:
    """Aim concepts of a table at token positions.

    Args:
        table: on `device`.
        aims: one or more.
        device: of the index tensors.

    Raises:
        InfusionError: an occurrence has another number of tokens than its concept.
    """
    aimed = [(aim, entry) for aim in aims for entry in _entries(aim.concept.residual, aim.row, aim.spans, aim.bin)]
    entries = [(*entry, aim.index) for aim, entry in aimed]
    index = torch.tensor(entries, dtype=torch.long, device=device).reshape(-1, 5)
    concepts = [aim.concept for aim, _ in aimed]
    blocks = {block for concept in concepts for block in concept.blocks}

    def strengths(block: str) -> Tensor:
        return torch.tensor([c.strength * c.blocks.get(block, 1.0) for c in concepts], device=device)

    rows, positions, token, bins, members = index.unbind(1)
    scales = {block: strengths(block) for block in blocks}
    return TableInjection(rows, positions, token, bins, table, members, strengths(""), scales)


def inject(
    concept: LoadedConcept, rows: Iterable[int], spans: Sequence[Sequence[Sequence[int]]], bins: Sequence[int],
    device: torch.device | str = "cpu",
) -> ConceptInjection:  # fmt: skip
    """Aim a concept at token positions.

    Args:
        concept: at its strength, its residual on `device`.
        rows: rows of the batch that receive it.
        spans: per such row, the occurrences of the word, each the context positions of the word's tokens.
        bins: per such row, the timestep bin.
        device: of the index tensors.

    Raises:
        InfusionError: an occurrence has another number of tokens than the concept.
    """
    each = zip(rows, spans, bins, strict=True)
    entries = [entry for row, occurrences, bin_ in each for entry in _entries(concept.residual, row, occurrences, bin_)]
    index = torch.tensor(entries, dtype=torch.long, device=device).reshape(-1, 4)
    return ConceptInjection(index[:, 0], index[:, 1], index[:, 2], index[:, 3], concept)


def _entries(
    residual: ConceptResidual, row: int, occurrences: Sequence[Sequence[int]], bin_: int
) -> Iterator[tuple[int, int, int, int]]:
    """Row, position, token and bin of every token of a word in one row."""
    for occurrence in occurrences:
        if len(occurrence) != residual.tokens:
            raise InfusionError(
                f"{residual.word!r} is {len(occurrence)} tokens here but the concept has {residual.tokens}; "
                "it was made with another tokenizer, train it again on this model"
            )
        yield from ((row, position, token, bin_) for token, position in enumerate(occurrence))
