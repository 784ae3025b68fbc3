"""Where the words of concepts stand in a conditioning, and how that is found again after other nodes had it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.tokens import Span

MENTIONS = "infusion_mentions"  # beside a conditioning's states: its `Texts`
_WATCHED = "word:"


@dataclass(frozen=True)
class Mentions:
    """Where words stand in one context.

    Attributes:
        spans: by the key of a concept or of a watched word, where the values of its tokens are.
        length: positions of the context.
        negated: positions whose value is the negative of the token's state, as a negative prompt inside a positive
            one has it; residuals are negative there too.
        interleaved: every token has two positions, its key's and then its value's.
    """

    spans: Mapping[str, tuple[Span, ...]]
    length: int
    negated: frozenset[int] = frozenset()
    interleaved: bool = False

    @property
    def of_concepts(self) -> bool:
        """Whether a concept is among them, not only words that are watched."""
        return any(not key.startswith(_WATCHED) for key in self.spans)

    @property
    def values(self) -> Mentions:
        """The same in the values alone, when keys and values of an interleaved context have been taken apart."""
        return self.moved(lambda position: position // 2, self.length // 2)

    def after(self, start: int) -> Mentions:
        """The same where the context begins at a position of a longer one."""
        return self.moved(lambda position: position + start, self.length + start, self.interleaved)

    def repeated(self, padded: int) -> Mentions:
        """The same in a context of `padded` positions: the host and others pad by repeating."""
        if padded == self.length:
            return self
        return joined((self.after(start) for start in range(0, padded, self.length)), padded)

    def seen_at(self, positions: Sequence[int]) -> Mentions:
        """The same in a context whose position i has the value of position ``positions[i]``, any number of times."""
        places = defaultdict[int, list[int]](list)
        for place, position in enumerate(positions):
            places[position].append(place)
        spans = {
            key: tuple(copy for span in found for copy in zip(*(places[p] for p in span), strict=False))
            for key, found in self.spans.items()
        }
        return Mentions(spans, len(positions), frozenset(i for i, p in enumerate(positions) if p in self.negated))

    def signed(self, key: str, sign: int) -> list[Span]:
        """The spans of a key whose values are the tokens' states, or (-1) their negatives."""
        return [span for span in self.spans.get(key, ()) if (span[0] in self.negated) == (sign < 0)]

    def moved(self, place: Any, length: int, interleaved: bool = False) -> Mentions:
        """The same with every position replaced by ``place(position)``, in a context of another length."""
        spans = {key: tuple(tuple(map(place, span)) for span in found) for key, found in self.spans.items()}
        return Mentions(spans, length, frozenset(map(place, self.negated)), interleaved)


Texts = tuple[Mentions | None, ...]
"""The texts of a conditioning, one for each row of its states, which pictures take in turn; None: an unknown one."""


def watched_key(word: str) -> str:
    """The key of a word that is watched, whether a concept's or not."""
    return f"{_WATCHED}{word}"


def joined(parts: Iterable[Mentions], length: int) -> Mentions:
    """The mentions of the parts of one context."""
    spans: dict[str, tuple[Span, ...]] = {}
    negated, interleaved = frozenset[int](), False
    for part in parts:
        for key, found in part.spans.items():
            spans[key] = (*spans.get(key, ()), *found)
        negated, interleaved = negated | part.negated, interleaved or part.interleaved
    return Mentions(spans, length, negated, interleaved)


def mentions_of(tokens: Mapping[str, Any], states: Tensor) -> Mentions:
    """Where the tokens of a prompt are bound in its states (1, L, D).

    With two encoders (SDXL) the texts are nearly always the same; where they differ, the second one's mentions count
    if it has any.

    Raises:
        InfusionError: a word is bound, but the states are not one per token, nor a key and a value per token.
    """
    encoders = [chunks for chunks in tokens.values() if isinstance(chunks, list)]
    spans = next(filter(None, map(_bound, reversed(encoders))), {})
    length, count = states.shape[1], min((sum(map(len, chunks)) for chunks in encoders), default=0)
    if not spans or length == count:
        return Mentions(spans, length)
    if length != 2 * count:
        raise InfusionError(_unknown(f"{length} states for {count} tokens"))
    return _interleaved(spans, states)


def _bound(chunks: list[Any]) -> dict[str, tuple[Span, ...]]:
    """Spans by key among the tokens of one encoder, all chunks in a line."""
    spans: dict[str, dict[int, list[int]]] = {}
    for position, entry in enumerate(entry for chunk in chunks for entry in chunk):
        for key, mention in getattr(entry[0], "bindings", ()):
            spans.setdefault(key, {}).setdefault(mention, []).append(position)
    return {key: tuple(map(tuple, mentions.values())) for key, mentions in spans.items()}


def _interleaved(spans: Mapping[str, tuple[Span, ...]], states: Tensor) -> Mentions:
    """Mentions of tokens in states that hold a key and a value of each in turn, as NegPip has them."""
    negated = set()
    for position in {p for found in spans.values() for span in found for p in span}:
        key, value = states[0, 2 * position], states[0, 2 * position + 1]
        if torch.equal(value, -key):
            negated.add(position)
        elif not torch.equal(value, key):
            raise InfusionError(_unknown("two states for each token, which are not its key and its value"))
    mentions = Mentions(spans, states.shape[1] // 2, frozenset(negated))
    return mentions.moved(lambda position: 2 * position + 1, states.shape[1], interleaved=True)


def _unknown(what: str) -> str:
    return (
        f"the text encoder gives {what}, so nobody can tell which of them is the concept's word; another node changed "
        "how this CLIP encodes: leave that node out, or name the concept in a prompt that is encoded without it"
    )
