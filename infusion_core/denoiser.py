"""What a host supplies: a network that says what noise is in a latent, and the conditioning it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .attention import Plan
from .concepts import LoadedConcept
from .noise import Prediction
from .residuals import Base
from .tokens import Span


@dataclass(frozen=True)
class Conditioning:
    """What the network reads beside the latent.

    Attributes:
        context: text-encoder states entering K and V, (R, L, D).
        extras: whatever else a host's network takes, each (R, ...), e.g. SDXL's pooled text.
    """

    context: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def repeat(self, times: int) -> Conditioning:
        """Every row `times` times, in blocks: row i becomes rows i * times ... (i + 1) * times - 1."""
        return Conditioning(
            self.context.repeat_interleave(times, 0),
            {k: v.repeat_interleave(times, 0) for k, v in self.extras.items()},
        )

    def of(self, rows: Sequence[int]) -> Conditioning:
        """Some of the rows."""
        picked = list(rows)
        return Conditioning(self.context[picked], {k: v[picked] for k, v in self.extras.items()})

    def lengthened(self, length: int) -> Conditioning:
        """The text said over again, to a length that is a multiple of its own.

        Attention pays each copy of a token an equal part of what it pays the one, so what it gives stays the same.
        """
        return replace(self, context=self.context.repeat(1, length // self.context.shape[1], 1))


Named = tuple[LoadedConcept, tuple[Span, ...]]  # a concept that a prompt names, and where


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt after the text encoder: one row of conditioning and, per concept, the spans of its word."""

    conditioning: Conditioning
    spans: tuple[tuple[Span, ...], ...] = ()

    def named(self, concepts: Sequence[LoadedConcept]) -> list[Named]:
        """The concepts that the prompt names, each with its spans; none at strength 0. All are in the spans' order."""
        found = zip(concepts, self.spans, strict=True)
        return [(concept, spans) for concept, spans in found if spans and concept.strength]

    def lengthened(self, length: int) -> EncodedPrompt:
        """The prompt said over again with all its words, see `Conditioning.lengthened`."""
        own = self.conditioning.context.shape[1]
        spans = tuple(
            tuple(tuple(p + first for p in span) for first in range(0, length, own) for span in found)
            for found in self.spans
        )
        return EncodedPrompt(self.conditioning.lengthened(length), spans)


def common_length(conditionings: Sequence[Conditioning]) -> int:
    """The least length that all texts can be lengthened to."""
    return math.lcm(*(c.context.shape[1] for c in conditionings))


def stack(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Rows of several conditionings as one batch. All contexts have one length."""
    return Conditioning(
        torch.cat([c.context for c in conditionings]),
        {k: torch.cat([c.extras[k] for c in conditionings]) for k in conditionings[0].extras},
    )


class Denoiser(Protocol):
    """A host's network. Its weights are frozen; gradients flow through it into the plan's residuals."""

    base: Base
    prediction: Prediction
    sigmas: Tensor  # training noise levels, ascending, (T,)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        ...

    def predict(self, noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        """The network's own output, epsilon or v.

        Args:
            noised: ``latent + sigma * noise``, (R, C, H, W).
            sigma: noise level of each row, (R,).
            conditioning: R rows.
            plan: what happens at the cross-attention layers.

        Returns:
            (R, C, H, W).
        """
        ...
