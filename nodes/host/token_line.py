"""The tokens of a prompt as the host has them, and those of parsers that read several texts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...infusion_core.errors import InfusionError
from ...infusion_core.spelling import ENDS
from ...infusion_core.tokens import occurrences


class BoundToken(int):
    """A token id that is bound.

    Attributes:
        bindings: key of a concept (or of a watched word) and the number of the mention, for each binding; no two
            mentions have the same number.
    """

    bindings: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, token: int, key: str, mention: int) -> BoundToken:
        """`token`, bound once more."""
        bound = cls(token)
        bound.bindings = (*getattr(token, "bindings", ()), (key, mention))
        return bound


@dataclass(frozen=True)
class TokenLine:
    """The tokens of a prompt in one encoder: chunks as the host has them, and the words' among them in one line.

    Attributes:
        tokenizer: of the encoder.
        chunks: each a list of (token, weight, number of the word).
        slots: chunk and index in it, per token of a word.
        ids, starts: see `infusion_core.tokens.occurrences`; a token of a textual inversion has id -1.
    """

    tokenizer: Any
    chunks: list[list[Any]]
    slots: list[tuple[int, int]]
    ids: list[int]
    starts: list[bool]

    @classmethod
    def read(cls, tokenizer: Any, encoder: str, chunks: list[list[Any]]) -> TokenLine:
        """Lay out the chunks.

        Raises:
            InfusionError: the encoder is not a CLIP.
        """
        if tokenizer is None:
            raise InfusionError(f"the text encoder {encoder!r} is not a CLIP; use a Stable Diffusion 1.x, 2.x or XL")
        line = cls(tokenizer, chunks, [], [], [])
        for c, chunk in enumerate(chunks):
            for i, (token, _, word) in enumerate(chunk):
                if word:
                    last = line.ids[-1] if line.ids else -1
                    line.starts.append(last < 0 or line.piece(last).endswith(ENDS))
                    line.slots.append((c, i))
                    line.ids.append(int(token) if isinstance(token, int) else -1)
        return line

    def find(self, word: str) -> list[range]:
        """Where a word stands; an empty range where its letters do, but not in tokens of their own."""
        return occurrences(self.ids, self.starts, word_ids(self.tokenizer, word), self.piece)

    def piece(self, token: int) -> str:
        """The piece of the vocabulary that a token is; a textual inversion's is no letter of any word."""
        piece: str = self.tokenizer.inv_vocab.get(token, f"\0{ENDS}")
        return piece

    def bind(self, key: str, found: Sequence[range], numbers: Any) -> None:
        """Bind tokens, in the chunks themselves; `numbers` yields one for each mention."""
        for where in found:
            mention = next(numbers)
            for c, i in (self.slots[index] for index in where):
                token, *rest = self.chunks[c][i]
                self.chunks[c][i] = (BoundToken.of(token, key, mention), *rest)


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word, without special tokens."""
    chunks = type(tokenizer).tokenize_with_weights(tokenizer, word, return_word_ids=True)
    return [int(token) for chunk in chunks for token, _, number in chunk if number]


def of_several_texts(chunks: Any) -> bool:
    """Whether an encoder's chunks are those of several texts: ids and weights, each a list per text."""
    return bool(chunks) and isinstance(chunks[0], tuple) and len(chunks[0]) == 2 and isinstance(chunks[0][0], list)


def text_chunks(chunks: Any, text: int, tokenizer: Any) -> list[list[Any]]:
    """One of several texts as the host has the tokens of one, every token that is not special a word of its own."""
    special = {getattr(tokenizer, name, None) for name in ("start_token", "end_token", "pad_token")}
    return [
        [(token, weight, 0 if token in special else 1) for token, weight in zip(ids[text], weights[text], strict=True)]
        for ids, weights in chunks
    ]


def texts_of(tokens: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tokens of each text that is encoded at once."""
    several = {encoder: chunks for encoder, chunks in tokens.items() if of_several_texts(chunks)}
    count = min((len(ids) for chunks in several.values() for ids, _ in chunks), default=0)
    return [{e: text_chunks(chunks, i, None) for e, chunks in several.items()} for i in range(count)] or [tokens]
