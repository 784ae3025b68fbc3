"""From an ordinary text-encode node to context positions: a CLIP that binds words to concepts.

The binding travels with the tokens (`BoundToken` is a token id that knows what it stands for), then with the
conditioning (key ``infusion``). Weights, long prompts, LoRA loaders and conditioning nodes therefore need no care.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.tokens import BoundPrompt, Span, bind_prompt, occurrences, pick

KEY = "infusion"
REMEMBERED = 32
CHUNK = 77
_FOUND = "infusion_found"


@dataclass(frozen=True)
class Binding:
    """Where the words of concepts stand in one context: spans by the concept's key, and the context's length."""

    spans: Mapping[str, tuple[Span, ...]]
    length: int

    def shifted(self, by: int) -> Mapping[str, tuple[Span, ...]]:
        """The spans of this context inside a longer one, `by` positions further."""
        return {key: tuple(tuple(p + by for p in span) for span in spans) for key, spans in self.spans.items()}


class BoundToken(int):
    """A token id that is bound.

    Attributes:
        bindings: key of a concept (or of an observed word) and the number of the mention, for each binding.
    """

    bindings: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, token: int, key: str, mention: int) -> BoundToken:
        """`token`, bound once more."""
        bound = cls(token)
        bound.bindings = (*getattr(token, "bindings", ()), (key, mention))
        return bound


class Memory:
    """The states of the last prompts that named a concept: all that Concat keeps of its second input."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Binding]] = []

    def __deepcopy__(self, memo: object) -> Memory:
        return self

    def add(self, states: Tensor, binding: Binding) -> None:
        """Remember states (1, L, D); the oldest are forgotten."""
        self._kept = [*self._kept[1 - REMEMBERED :], (states[0].detach(), binding)]

    def find(self, states: Tensor, first: int) -> dict[str, tuple[Span, ...]]:
        """Spans of remembered prompts that are part of `states` (1, L, D), from position `first` on; the latest counts.

        A remembered prompt that is all of `states` is not looked for: then the binding itself has travelled.
        """
        found: dict[str, tuple[Span, ...]] = {}
        row, at = states[0], first
        while at < len(row):
            kept = next((k for k in reversed(self._kept) if _stands(k[0], row, at)), None)
            if kept is not None:
                for key, spans in kept[1].shifted(at).items():
                    found[key] = (*found.get(key, ()), *spans)
            at += len(kept[0]) if kept is not None else CHUNK
        return found


class InfusedCLIP(comfy.sd.CLIP):  # type: ignore[misc]
    """A CLIP whose encodes say where concepts' words stand. Made by `infuse_clip`.

    Attributes:
        words: word by the name that a placeholder uses, in order.
        keys: the concept's key by that name.
        tokens: tokens of the word that the concept was trained with, by name.
        observed: words whose places are wanted too, under the key ``word:WORD``.
        memory: shared with the patched model.
    """

    words: Mapping[str, str]
    keys: Mapping[str, str]
    tokens: Mapping[str, int]
    observed: tuple[str, ...]
    memory: Memory

    def clone(self, *args: Any, **kwargs: Any) -> InfusedCLIP:
        """As the host's; LoRA loaders and others clone."""
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        _equip(copy, self.words, self.keys, self.tokens, self.observed, self.memory)
        return copy  # type: ignore[no-any-return]

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Tokens of a prompt, those of concepts' words bound.

        Raises:
            InfusionError: a placeholder names no concept, or a word is ambiguous or tokenized differently.
        """
        prompt = bind_prompt(text, self.words)
        tokens = super().tokenize(prompt.text, return_word_ids=True, **kwargs)
        for encoder, chunks in tokens.items():
            if isinstance(chunks, list):
                self._bind(encoder, chunks, prompt)
        if return_word_ids:
            return tokens  # type: ignore[no-any-return]
        return {
            encoder: [[(t[0], t[1]) for t in chunk] for chunk in chunks] if isinstance(chunks, list) else chunks
            for encoder, chunks in tokens.items()
        }

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        """As the host's; a dict also holds the binding."""
        out = super().encode_from_tokens(tokens, return_pooled=return_pooled, return_dict=return_dict)
        states = out["cond"] if return_dict else out[0] if isinstance(out, tuple) else out
        binding = binding_of(tokens, states.shape[1])
        if binding is not None:
            self.memory.add(states, binding)
            if return_dict:
                out[KEY] = binding
        return out

    def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """As the host's; each conditioning also holds the binding."""
        scheduled = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for states, options in scheduled:
            binding = binding_of(tokens, states.shape[1])
            if binding is not None:
                options[KEY] = binding
        return scheduled

    def _bind(self, encoder: str, chunks: list[list[Any]], prompt: BoundPrompt) -> None:
        text = Text.read(getattr(self.tokenizer, f"clip_{encoder}", None), encoder, chunks)
        for (name, word), chosen in zip(self.words.items(), prompt.chosen, strict=True):
            found = text.find(word)
            if found and len(found[0]) != self.tokens[name]:
                raise InfusionError(
                    f"{word!r} is {len(found[0])} tokens here but the concept {name!r} was trained with "
                    f"{self.tokens[name]}; train it again on this model"
                )
            text.bind(self.keys[name], pick(found, chosen, word))
        for word in self.observed:
            text.bind(f"word:{word}", text.find(word))


@dataclass(frozen=True)
class Text:
    """The tokens of a prompt in one encoder: chunks as the host has them, and the words among them in one row."""

    tokenizer: Any
    chunks: list[list[Any]]
    places: list[tuple[int, int]]
    ids: list[int]
    starts: list[bool]

    @classmethod
    def read(cls, tokenizer: Any, encoder: str, chunks: list[list[Any]]) -> Text:
        """Lay out the chunks; a token of a textual inversion has id -1.

        Raises:
            InfusionError: the encoder is not a CLIP.
        """
        if tokenizer is None:
            raise InfusionError(f"the text encoder {encoder!r} is not a CLIP; use a Stable Diffusion 1.x, 2.x or XL")
        text = cls(tokenizer, chunks, [], [], [])
        for c, chunk in enumerate(chunks):
            for i, (token, _, word) in enumerate(chunk):
                if word:
                    last = text.ids[-1] if text.ids else -1
                    text.starts.append(last < 0 or tokenizer.inv_vocab[last].endswith("</w>"))
                    text.places.append((c, i))
                    text.ids.append(int(token) if isinstance(token, int) else -1)
        return text

    def find(self, word: str) -> list[range]:
        """Where a word stands."""
        return occurrences(self.ids, self.starts, word_ids(self.tokenizer, word))

    def bind(self, key: str, found: list[range]) -> None:
        """Bind tokens, in the chunks themselves."""
        for mention, where in enumerate(found):
            for c, i in (self.places[index] for index in where):
                token, *rest = self.chunks[c][i]
                self.chunks[c][i] = (BoundToken.of(token, key, mention), *rest)


def infuse_clip(
    clip: Any, words: Mapping[str, str], keys: Mapping[str, str], tokens: Mapping[str, int], memory: Memory
) -> InfusedCLIP:
    """A clone of a CLIP, of whatever class, that binds words to concepts; earlier concepts are replaced."""
    copy = _infused(clip)
    return _equip(copy, words, keys, tokens, copy.observed, memory)


def observe_words(clip: Any, words: Sequence[str], memory: Memory) -> InfusedCLIP:
    """A clone of a CLIP, of whatever class, that also says where words stand, whether a concept's or not."""
    copy = _infused(clip)
    observed = tuple(dict.fromkeys((*copy.observed, *words)))
    return _equip(copy, copy.words, copy.keys, copy.tokens, observed, memory)


def _infused(clip: Any) -> InfusedCLIP:
    copy = clip.clone()
    if isinstance(copy, InfusedCLIP):
        return copy
    own = type(copy)
    copy.__class__ = InfusedCLIP if own is comfy.sd.CLIP else type(own.__name__, (InfusedCLIP, own), {})
    return _equip(copy, {}, {}, {}, (), Memory())


def _equip(
    clip: Any,
    words: Mapping[str, str],
    keys: Mapping[str, str],
    tokens: Mapping[str, int],
    observed: tuple[str, ...],
    memory: Memory,
) -> InfusedCLIP:
    clip.words, clip.keys, clip.tokens, clip.observed, clip.memory = words, keys, tokens, observed, memory
    infused: InfusedCLIP = clip
    return infused


def binding_of(tokens: Mapping[str, Any], length: int) -> Binding | None:
    """What the tokens of a prompt are bound to; None if to nothing.

    With two encoders (SDXL) the texts are nearly always the same; where they differ, the second one's binding
    counts if it has any.
    """
    for chunks in reversed([c for c in tokens.values() if isinstance(c, list)]):
        spans: dict[str, dict[int, list[int]]] = {}
        start = 0
        for chunk in chunks:
            for i, entry in enumerate(chunk):
                for key, mention in getattr(entry[0], "bindings", ()):
                    spans.setdefault(key, {}).setdefault(mention, []).append(start + i)
            start += len(chunk)
        if spans:
            return Binding({key: tuple(map(tuple, m.values())) for key, m in spans.items()}, length)
    return None


def spans_in(cond: dict[str, Any], memory: Memory) -> Mapping[str, tuple[Span, ...]]:
    """Spans of a conditioning, as the sampler has it, by key.

    The host gives negatives without an area a copy of a positive's dict that holds the negative's text states; what
    travels beside the states counts only where it belongs to them. The answer is kept beside the conditioning.
    """
    known = cond.setdefault(_FOUND, {})
    if id(memory) not in known:
        known[id(memory)] = _find(cond, memory)
    found: Mapping[str, tuple[Span, ...]] = known[id(memory)]
    return found


def memory_of(clip: Any) -> Memory:
    """The memory of a CLIP that has one, or a new one."""
    return clip.memory if isinstance(clip, InfusedCLIP) else Memory()


def _find(cond: dict[str, Any], memory: Memory) -> Mapping[str, tuple[Span, ...]]:
    text = cond["model_conds"].get("c_crossattn")
    if text is None:
        return {}
    states, binding = text.cond, cond.get(KEY)
    beside = cond.get("cross_attn")
    own = beside is not None and beside.shape == states.shape and torch.equal(beside.to(states), states)
    if binding is None or not own or not states.any():
        return memory.find(states, 0)
    found = memory.find(states, binding.length)
    return {key: (*binding.spans.get(key, ()), *found.get(key, ())) for key in {*binding.spans, *found}}


def _stands(kept: Tensor, row: Tensor, at: int) -> bool:
    """Whether remembered states are the part of a longer row that begins at a position."""
    part = row[at : at + len(kept)]
    return len(kept) < len(row) and part.shape == kept.shape and torch.equal(part, kept.to(part))


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word, without special tokens."""
    chunks = tokenizer.tokenize_with_weights(word, return_word_ids=True)
    return [int(token) for chunk in chunks for token, _, number in chunk if number]
