"""Prompts of any length through one or two CLIP text encoders, with the place of every token known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..denoiser import Conditioning, EncodedPrompt
from ..errors import InfusionError
from ..spelling import ENDS, Pieces
from ..tokens import Span, bind_prompt, occurrences, spans
from .model_json import Rule, check, read_json, whole

MOST_WORDS = 2**20
WORDS = Rule(
    "an object of words in small letters",
    lambda v: isinstance(v, dict) and len(v) > 1 and all(_split(word) == [word] for word in v),
)


class Tokenizer(Protocol):
    """Text to token ids, and where words start among them."""

    @property
    def length(self) -> int:
        """Tokens of one chunk, with start and end."""
        ...

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """Token ids without special tokens, and per token whether a word starts there."""
        ...

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token id by what stands in a text."""
        ...

    @property
    def pieces(self) -> Pieces | None:
        """Of a CLIP's vocabulary; None where every token is a word."""
        ...

    def frame(self, ids: Sequence[int]) -> list[int]:
        """One chunk: `ids` between start and end, padded to `length`."""
        ...


class ClipTokenizer:
    """A CLIP tokenizer of transformers.

    Args:
        tokenizer: of transformers.
        length: tokens of one chunk, with start and end.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        ids = list(self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        return ids, [i == 0 or pieces[i - 1].endswith(ENDS) for i in range(len(ids))]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        known: dict[str, int] = self._tokenizer.get_vocab()
        return known

    @property
    def pieces(self) -> Pieces:
        return cast(Pieces, self._tokenizer.convert_ids_to_tokens)

    def splits_like(self, other: ClipTokenizer) -> bool:
        """Whether both know the same words and give chunks of one length."""
        return self.vocabulary == other.vocabulary and self.length == other.length

    def frame(self, ids: Sequence[int]) -> list[int]:
        tokenizer = self._tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        return row + [tokenizer.pad_token_id] * (self.length - len(row))


@dataclass(frozen=True)
class WordTokenizer:
    """A list of words, each one token.

    Attributes:
        ids: token id by word.
        start, end: ids of the special tokens; `end` also pads.
        length: tokens of one chunk, with start and end.
    """

    ids: Mapping[str, int]
    start: int
    end: int
    length: int

    @classmethod
    def read(cls, file: Path, vocabulary: int = MOST_WORDS, positions: int = MOST_WORDS) -> WordTokenizer:
        """The tokenizer that a model's ``tokenizer/words.json`` describes.

        Args:
            file: to read.
            vocabulary: tokens that the text encoder has an embedding for.
            positions: tokens that it reads at once.

        Raises:
            InfusionError: the file is missing or damaged, or its numbers are not the text encoder's.
        """
        told = read_json(file)
        number, start = whole(0, vocabulary - 1), told.get("start", -1)
        other = Rule(f"{number.says} and not {start!r}", lambda v: number.holds(v) and v != start)
        rules = {"start": number, "end": other, "length": whole(3, positions), "words": WORDS}
        check(file, told, rules, needed=[*rules])
        taken = [start, told["end"], *told["words"].values()]
        if not all(map(number.holds, taken)) or len(set(taken)) < len(taken):
            raise InfusionError(
                f"{file} does not give each word a number of its own below {vocabulary:,}; "
                "get this file of the model again"
            )
        return cls(told["words"], start, told["end"], told["length"])

    def with_words(self, extra: Mapping[str, int]) -> WordTokenizer:
        """A tokenizer that knows more words."""
        return replace(self, ids={**self.ids, **extra})

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """Token ids, each a word's start.

        Raises:
            InfusionError: a word is not in the list; names it and the nearest that are.
        """
        words = _split(text)
        for word in words:
            if word not in self.ids:
                near = difflib.get_close_matches(word, self.ids, 3, 0.5) or self.ids
                raise InfusionError(f"this model does not know the word {word!r}; try: {', '.join(near)}")
        return [self.ids[word] for word in words], [True] * len(words)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return self.ids

    @property
    def pieces(self) -> None:
        return None

    def frame(self, ids: Sequence[int]) -> list[int]:
        return [self.start, *ids, *[self.end] * (self.length - 1 - len(ids))]


def _split(text: str) -> list[str]:
    return text.lower().replace(",", " ").replace(".", " ").split()


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its text encoder.

    Attributes:
        tokenizer: of the encoder.
        model: a CLIP text model of transformers.
        penultimate: take the states of the layer before the last, as SDXL does.
        pools: the model has a projection, and its pooled text is the one that the network takes.
    """

    tokenizer: Tokenizer
    model: Any
    penultimate: bool = False
    pools: bool = False

    def __call__(self, chunks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """States of all chunks in a row, (1, chunks * length, width), and the first chunk's pooled text if it pools."""
        ids = torch.tensor([self.tokenizer.frame(c) for c in chunks], device=self.model.device)
        out = self.model(ids, output_hidden_states=self.penultimate)
        states = out.hidden_states[-2] if self.penultimate else out.last_hidden_state
        return states.flatten(0, 1)[None], out.text_embeds[:1] if self.pools else None


class TextPath:
    """From a prompt to conditioning and spans.

    Args:
        encoders: one, or SDXL's two, of which one pools; all tokenizers split text alike.
        extras: conditioning the model takes beside text, each (1, ...), e.g. SDXL's time ids.
    """

    def __init__(self, encoders: Sequence[Encoder], extras: Mapping[str, Tensor] | None = None) -> None:
        self.encoders = tuple(encoders)
        self.extras = dict(extras or {})

    @property
    def capacity(self) -> int:
        """Text tokens that fit in one chunk."""
        return self.encoders[0].tokenizer.length - 2

    def word_tokens(self, word: str) -> list[int]:
        """Token ids of a concept's word.

        Raises:
            InfusionError: the word is empty or longer than the encoder takes.
        """
        ids, _ = self.encoders[0].tokenizer.split(word)
        if not ids:
            raise InfusionError(f"the word {word!r} is empty for this model; choose a class word such as 'cat'")
        if len(ids) > self.capacity:
            raise InfusionError(f"the word is {len(ids)} tokens long, {self.capacity} fit; choose a short class word")
        return ids

    def encode_alike(self, prompts: Sequence[str], concepts: Mapping[str, str] | None = None) -> list[EncodedPrompt]:
        """Prompts of one length, so that they can share a batch; see `encode`."""
        read = [self.encode(prompt, concepts) for prompt in prompts]
        chunks = max(map(self.chunks_of, read))
        if all(self.chunks_of(one) == chunks for one in read):
            return read
        return [self.encode(prompt, concepts, chunks) for prompt in prompts]

    def encode(
        self, prompt: str, concepts: Mapping[str, str] | None = None, chunks: int = 1, live: bool = False
    ) -> EncodedPrompt:
        """Encode a prompt and find each concept's word in it.

        Args:
            prompt: may hold ``<name>`` placeholders, see `bind_prompt`; longer prompts take several chunks.
            concepts: word by name.
            chunks: at least so many, so that prompts of a batch get one length.
            live: gradients flow into the encoders, where they are trained.

        Raises:
            InfusionError: see `bind_prompt` and `word_tokens`.
        """
        concepts = concepts or {}
        bound = bind_prompt(prompt, concepts)
        tokenizer = self.encoders[0].tokenizer
        ids, starts = tokenizer.split(bound.text)
        pieces = None if bound.text.isascii() else tokenizer.pieces  # as `occurrences` finds out by itself, later
        found: list[tuple[Span, ...]] = []
        for word, chosen, seen in zip(bound.words, bound.chosen, bound.seen, strict=True):
            where = occurrences(ids, starts, self.word_tokens(word), pieces)
            every = tuple(range(seen)) if chosen is None else chosen  # tokens hide some: "'toy'" is "'t", "oy"
            found.append(spans(where, every, word, self.capacity, self.capacity + 2, seen))
        states, extras = [], dict(self.extras)
        for encoder in self.encoders:
            own, _ = encoder.tokenizer.split(bound.text)
            parts = [own[i : i + self.capacity] for i in range(0, len(own), self.capacity)]
            parts += [[]] * (chunks - len(parts))
            with torch.set_grad_enabled(live and torch.is_grad_enabled()):
                state, pooled = encoder(parts)
            states.append(state)
            if pooled is not None:
                extras["text_embeds"] = pooled
        return EncodedPrompt(Conditioning(torch.cat(states, dim=2), extras), tuple(found))

    def chunks_of(self, prompt: EncodedPrompt) -> int:
        """Number of chunks a prompt took."""
        return prompt.conditioning.context.shape[1] // (self.capacity + 2)
