"""A concept in one forward pass: which entries of the context receive which part of its residual (eq. 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .concepts import LoadedConcept
from .errors import InfusionError
from .residuals import Space
from .sites import Site


@dataclass(frozen=True)
class Injection:
    """One concept at work in one forward pass.

    The four index tensors are long, of one length M; entry m adds ``residual[bin[m], token[m]]``, at the concept's
    strength, at ``context[row[m], position[m]]``.

    Attributes:
        concept: what is added.
        rows: row of the batch.
        positions: index along the context.
        token: token within the word.
        bin: timestep bin.
    """

    concept: LoadedConcept
    rows: Tensor
    positions: Tensor
    token: Tensor
    bin: Tensor

    def add_to(self, target: Tensor, site: Site) -> Tensor:
        """`target` (R, L, width) with the residual of `site` added; `target` itself when it has none there."""
        delta = self.concept.residual.at(site)
        if delta is None:
            return target
        chosen = delta[self.bin, self.token].to(target.dtype) * self.concept.strength_at(site)  # (M, width)
        return target.index_put((self.rows, self.positions), chosen, accumulate=True)

    @property
    def space(self) -> Space:
        """What the residual is added to, see `ConceptResidual`."""
        return self.concept.residual.space


def inject(
    concept: LoadedConcept, rows: Iterable[int], spans: Sequence[Sequence[Sequence[int]]], bins: Sequence[int],
    device: torch.device | str = "cpu",
) -> Injection:  # fmt: skip
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
    residual = concept.residual
    entries: list[tuple[int, int, int, int]] = []
    for row, occurrences, bin_ in zip(rows, spans, bins, strict=True):
        for occurrence in occurrences:
            if len(occurrence) != residual.tokens:
                raise InfusionError(
                    f"{residual.word!r} is {len(occurrence)} tokens here but the concept has {residual.tokens}; "
                    "it was made with another tokenizer, train it again on this model"
                )
            entries.extend((row, position, token, bin_) for token, position in enumerate(occurrence))
    index = torch.tensor(entries, dtype=torch.long, device=device).reshape(-1, 4)
    return Injection(concept, index[:, 0], index[:, 1], index[:, 2], index[:, 3])
