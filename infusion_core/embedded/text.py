"""Prompts of any length through one or two CLIP text encoders, with the place of every token known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..denoiser import Conditioning, EncodedPrompt
from ..errors import InfusionError
from ..tokens import Span, bind_prompt, occurrences, spans
from .tinyworld import words


class Tokenizer(Protocol):
    """Text to token ids, and where words start among them."""

    length: int  # tokens of one chunk, with start and end

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """Token ids without special tokens, and per token whether a word starts there."""
        ...

    def frame(self, ids: Sequence[int]) -> list[int]:
        """One chunk: `ids` between start and end, padded to `length`."""
        ...


class ClipTokenizer:
    """A CLIP tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.length = min(int(tokenizer.model_max_length), 77)

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """See `Tokenizer.split`; a CLIP token that ends a word ends in ``</w>``."""
        ids = list(self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        return ids, [i == 0 or pieces[i - 1].endswith("</w>") for i in range(len(ids))]

    def frame(self, ids: Sequence[int]) -> list[int]:
        """See `Tokenizer.frame`."""
        tokenizer = self._tokenizer
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        return row + [tokenizer.pad_token_id] * (self.length - len(row))


class WordTokenizer:
    """TinyWorld's word list."""

    length = words.LENGTH

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """See `Tokenizer.split`; every word is one token."""
        try:
            ids = words.word_ids(text)
        except ValueError as error:
            raise InfusionError(str(error)) from error
        return ids, [True] * len(ids)

    def frame(self, ids: Sequence[int]) -> list[int]:
        """See `Tokenizer.frame`."""
        return [words.START, *ids, *[words.END] * (self.length - 1 - len(ids))]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its text encoder; `penultimate` takes SDXL's layer instead of the last one."""

    tokenizer: Tokenizer
    model: Any
    penultimate: bool = False

    @torch.no_grad()
    def __call__(self, chunks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """States of all chunks in a row, (1, chunks * length, width), and the first chunk's pooled vector."""
        ids = torch.tensor([self.tokenizer.frame(c) for c in chunks], device=self.model.device)
        out = self.model(ids, output_hidden_states=self.penultimate)
        states = out.hidden_states[-2] if self.penultimate else out.last_hidden_state
        pooled = getattr(out, "text_embeds", None)
        return states.flatten(0, 1)[None], None if pooled is None else pooled[:1]


class TextPath:
    """From a prompt to conditioning and spans.

    Args:
        encoders: one, or SDXL's two; all tokenizers split text alike.
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

    def encode(self, prompt: str, concepts: Mapping[str, str] | None = None, chunks: int = 1) -> EncodedPrompt:
        """Encode a prompt and find each concept's word in it.

        Args:
            prompt: may hold ``<name>`` placeholders, see `bind_prompt`; longer prompts take several chunks.
            concepts: word by name.
            chunks: at least so many, so that prompts of a batch get one length.

        Raises:
            InfusionError: see `bind_prompt` and `word_tokens`.
        """
        concepts = concepts or {}
        bound = bind_prompt(prompt, concepts)
        ids, starts = self.encoders[0].tokenizer.split(bound.text)
        found: list[tuple[Span, ...]] = []
        for word, chosen in zip(bound.words, bound.chosen, strict=True):
            where = occurrences(ids, starts, self.word_tokens(word))
            found.append(spans(where, chosen, word, self.capacity, self.capacity + 2))
        states, pooled = [], None
        for encoder in self.encoders:
            own, _ = encoder.tokenizer.split(bound.text)
            parts = [own[i : i + self.capacity] for i in range(0, len(own), self.capacity)]
            parts += [[]] * (chunks - len(parts))
            state, pooled = encoder(parts)
            states.append(state)
        extras = dict(self.extras)
        if pooled is not None and extras:
            extras["text_embeds"] = pooled
        return EncodedPrompt(Conditioning(torch.cat(states, dim=2), extras), tuple(found))

    def chunks_of(self, prompt: EncodedPrompt) -> int:
        """Number of chunks a prompt took."""
        return prompt.conditioning.context.shape[1] // (self.capacity + 2)
