"""Readers of attention maps: record what they are made of, or sum up what words receive."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import QueryKey
from .sites import Site

_LEAST_VARIANCE = 1e-12  # below which a channel counts as even: the slope of a square root at zero has no end


@dataclass(frozen=True)
class Recorder:
    """Keeps the queries and keys of some rows, for a later pass whose maps they become.

    Attributes:
        maps: filled, by site name.
        rows: rows of the batch to keep, in the order the later pass has them.
    """

    maps: MutableMapping[str, QueryKey]
    rows: slice | Sequence[int] = field(default_factory=lambda: slice(None))

    def __call__(self, site: Site, query: Tensor, key: Tensor) -> None:
        """Keep the rows."""
        self.maps[site.name] = (query[self.rows], key[self.rows])


@dataclass
class WordMaps:
    """How much attention words receive: per word and number of queries, the sum over layers and steps.

    Attributes:
        words: that are watched, in order.
        sums: by word and number of queries N: mean over heads, (pictures, N), on the CPU.
        counts: how many layers and steps each sum holds.
    """

    words: tuple[str, ...]
    sums: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    counts: dict[tuple[str, int], int] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> WordMaps:
        return self  # hosts copy what travels with a model; there is one set of maps

    def clear(self) -> None:
        """Forget everything; a new run begins."""
        self.sums.clear()
        self.counts.clear()

    def add(self, word: str, shares: Tensor) -> None:
        """Add what one layer showed at one step, (pictures, N); another number of pictures begins anew."""
        slot = word, shares.shape[1]
        shares, held = shares.float().cpu(), self.sums.get(slot)
        fresh = held is None or held.shape != shares.shape
        self.sums[slot] = shares if fresh or held is None else held + shares
        self.counts[slot] = 1 if fresh else self.counts[slot] + 1

    def mean(self, word: str, size: int, height: int, width: int) -> Tensor | None:
        """Mean map of a word, scaled to (pictures, height, width); None if the word was in no prompt.

        Args:
            word: watched.
            size: shorter edge of the maps to use; 0 for all sizes, each of equal weight.
            height, width: of the picture, px.
        """
        means = []
        for (held, queries), total in self.sums.items():
            grid = grid_of(queries, height, width)
            if held == word and size in (0, min(grid)):
                mean = (total / self.counts[held, queries]).reshape(-1, 1, *grid)
                means.append(F.interpolate(mean, (height, width), mode="bilinear")[:, 0])
        return torch.stack(means).mean(0) if means else None

    def sizes(self, height: int, width: int) -> list[int]:
        """Shorter edges of the maps there are, for a picture of that size."""
        return sorted({min(grid_of(queries, height, width)) for _, queries in self.sums})


@dataclass(frozen=True)
class WordReader:
    """Sums up the attention that words receive from some rows. Whole maps are never kept.

    Attributes:
        rows: of one prompt, a row per picture.
        positions: of each word's tokens along the context; or such for several texts, which the rows take in turn. A
            row whose text lacks a word that another has pays it no attention.
        maps: filled.
    """

    rows: slice
    positions: Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]]]
    maps: WordMaps

    def __call__(self, site: Site, query: Tensor, key: Tensor) -> None:
        """Look at the rows, picture by picture: a map of all tokens is large."""
        texts = self.positions if isinstance(self.positions, Sequence) else (self.positions,)
        rows = list(zip(query[self.rows], key[self.rows], cycle(texts), strict=False))
        for word in dict.fromkeys(word for text in texts for word in text):
            self.maps.add(word, torch.stack([attention_to(q, k, text.get(word, ())) for q, k, text in rows]))


def attention_to(query: Tensor, key: Tensor, positions: Sequence[int]) -> Tensor:
    """Share of attention that queries pay to some positions of the context, mean over heads, (N,).

    Args:
        query: (heads, N, head width).
        key: (heads, L, head width).
        positions: along the context.
    """
    scores = query.float() @ key.float().transpose(1, 2) / math.sqrt(query.shape[-1])  # (heads, N, L)
    return scores.softmax(-1)[..., list(positions)].sum(-1).mean(0)


def grid_of(queries: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the N queries of a layer, for a picture of that size: the factors nearest to its shape."""
    rows = [r for r in range(1, queries + 1) if queries % r == 0]
    best = min(rows, key=lambda r: abs(math.log(r * r / queries * width / height)))
    return best, queries // best


@dataclass(frozen=True)
class FeatureMoments:
    """A reader of self-attention: the mean and the standard deviation of each channel over a picture's places.

    Attributes:
        moments: filled, by site name: (R, 2, C), in float32 or better.
        sites: names of those that are looked at; None for all.
    """

    moments: MutableMapping[str, Tensor]
    sites: frozenset[str] | None = None

    def __call__(self, site: Site, features: Tensor) -> None:
        """Look at features (R, N, C)."""
        if self.sites is None or site.name in self.sites:
            precise = features if features.dtype == torch.float64 else features.float()
            deviation = precise.var(1, correction=0).clamp(min=_LEAST_VARIANCE).sqrt()
            self.moments[site.name] = torch.stack([precise.mean(1), deviation], 1)
