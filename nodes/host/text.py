"""From an ordinary text-encode node to context positions: a CLIP that binds words to concepts.

The binding travels with the tokens (`BoundToken` is a token id that knows what it stands for), then with the
conditioning (`MENTIONS`). Weights, long prompts, LoRA loaders and conditioning nodes therefore need no care.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd

from ...infusion_core.errors import InfusionError
from ...infusion_core.tokens import BoundPrompt, bind_prompt, occurrences, pick
from .mentions import MENTIONS, Memory, Mentions, watched_key


@dataclass(frozen=True)
class ConceptWord:
    """A concept as prompts know it.

    Attributes:
        key: identifies the concept.
        name: what ``<name>`` refers to.
        word: what a prompt says.
        tokens: of the word, as the concept was trained.
    """

    key: str
    name: str
    word: str
    tokens: int


class BoundToken(int):
    """A token id that is bound.

    Attributes:
        bindings: key of a concept (or of a watched word) and the number of the mention, for each binding.
    """

    bindings: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, token: int, key: str, mention: int) -> BoundToken:
        """`token`, bound once more."""
        bound = cls(token)
        bound.bindings = (*getattr(token, "bindings", ()), (key, mention))
        return bound


class InfusedCLIP(comfy.sd.CLIP):  # type: ignore[misc]
    """A CLIP whose encodes say where concepts' words stand. Made by `infuse_clip`.

    Attributes:
        concepts: whose words are bound.
        watched: words whose positions are wanted too, see `watched_key`.
        memory: shared with the patched model.
    """

    concepts: tuple[ConceptWord, ...]
    watched: tuple[str, ...]
    memory: Memory

    def clone(self, *args: Any, **kwargs: Any) -> InfusedCLIP:
        """As the host's, of this class; LoRA loaders and others clone."""
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        return _equip(copy, self.concepts, self.watched, self.memory)

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Tokens of a prompt, those of concepts' words bound.

        Raises:
            InfusionError: a placeholder names no concept, or a word is ambiguous or tokenized differently.
        """
        prompt = bind_prompt(text, {concept.name: concept.word for concept in self.concepts})
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
        """As the host's; a dict also holds the mentions."""
        out = super().encode_from_tokens(tokens, return_pooled=return_pooled, return_dict=return_dict)
        states = out["cond"] if return_dict else out[0] if isinstance(out, tuple) else out
        mentions = mentions_of(tokens, states.shape[1])
        if mentions is not None:
            self.memory.add(states, mentions)
            if return_dict:
                out[MENTIONS] = mentions
        return out

    def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """As the host's; each conditioning also holds the mentions."""
        scheduled = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for states, options in scheduled:
            mentions = mentions_of(tokens, states.shape[1])
            if mentions is not None:
                options[MENTIONS] = mentions
        return scheduled

    def _bind(self, encoder: str, chunks: list[list[Any]], prompt: BoundPrompt) -> None:
        line = TokenLine.read(getattr(self.tokenizer, f"clip_{encoder}", None), encoder, chunks)
        for concept, chosen in zip(self.concepts, prompt.chosen, strict=True):
            found = line.find(concept.word)
            if found and len(found[0]) != concept.tokens:
                raise InfusionError(
                    f"{concept.word!r} is {len(found[0])} tokens here but the concept {concept.name!r} was trained "
                    f"with {concept.tokens}; train it again on this model"
                )
            line.bind(concept.key, pick(found, chosen, concept.word))
        for word in self.watched:
            line.bind(watched_key(word), line.find(word))


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
                    line.starts.append(last < 0 or tokenizer.inv_vocab[last].endswith("</w>"))
                    line.slots.append((c, i))
                    line.ids.append(int(token) if isinstance(token, int) else -1)
        return line

    def find(self, word: str) -> list[range]:
        """Where a word stands."""
        return occurrences(self.ids, self.starts, word_ids(self.tokenizer, word))

    def bind(self, key: str, found: list[range]) -> None:
        """Bind tokens, in the chunks themselves."""
        for mention, where in enumerate(found):
            for c, i in (self.slots[index] for index in where):
                token, *rest = self.chunks[c][i]
                self.chunks[c][i] = (BoundToken.of(token, key, mention), *rest)


def infuse_clip(clip: Any, concepts: Sequence[ConceptWord], memory: Memory) -> InfusedCLIP:
    """A clone of a CLIP, of whatever class, that binds words to concepts; earlier concepts are replaced."""
    copy = _infused(clip)
    return _equip(copy, tuple(concepts), copy.watched, memory)


def watch_words(clip: Any, words: Sequence[str], memory: Memory) -> InfusedCLIP:
    """A clone of a CLIP, of whatever class, that also says where words stand, whether a concept's or not."""
    copy = _infused(clip)
    return _equip(copy, copy.concepts, tuple(dict.fromkeys((*copy.watched, *words))), memory)


def memory_of(clip: Any) -> Memory:
    """The memory of a CLIP that has one, or a new one."""
    return clip.memory if isinstance(clip, InfusedCLIP) else Memory()


def _infused(clip: Any) -> InfusedCLIP:
    copy = clip.clone()
    if isinstance(copy, InfusedCLIP):
        return copy
    own = type(copy)
    copy.__class__ = InfusedCLIP if own is comfy.sd.CLIP else type(own.__name__, (InfusedCLIP, own), {})
    return _equip(copy, (), (), Memory())


def _equip(clip: Any, concepts: tuple[ConceptWord, ...], watched: tuple[str, ...], memory: Memory) -> InfusedCLIP:
    clip.concepts, clip.watched, clip.memory = concepts, watched, memory
    infused: InfusedCLIP = clip
    return infused


def mentions_of(tokens: Mapping[str, Any], length: int) -> Mentions | None:
    """Where the tokens of a prompt are bound, in a context of `length` positions; None if nowhere.

    With two encoders (SDXL) the texts are nearly always the same; where they differ, the second one's mentions count
    if it has any.
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
            return Mentions({key: tuple(map(tuple, m.values())) for key, m in spans.items()}, length)
    return None


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word, without special tokens."""
    chunks = tokenizer.tokenize_with_weights(word, return_word_ids=True)
    return [int(token) for chunk in chunks for token, _, number in chunk if number]


def word_length(clip: Any, word: str) -> int:
    """Number of tokens of a word for a CLIP.

    Raises:
        InfusionError: the word is empty, or so long that it does not fit.
    """
    chunks = next(iter(clip.tokenize(word, return_word_ids=True).values()))
    count = sum(1 for chunk in chunks for entry in chunk if entry[2])
    if not count:
        raise InfusionError("the word is empty; write a class word such as 'cat'")
    if len(chunks) > 1:
        raise InfusionError(f"the word is {count} tokens long, more than the text encoder takes; choose a short one")
    return count
