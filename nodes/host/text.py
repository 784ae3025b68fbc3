"""From an ordinary text-encode node to context positions: a CLIP that binds words to concepts.

The binding travels with the tokens (`BoundToken` is a token id that knows what it stands for), then with the
conditioning (`MENTIONS`), and where only states travel they are known again (`Memory`). Weights, long prompts, LoRA
loaders and conditioning nodes therefore need no care.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import count
from typing import Any

import comfy.sd

from ...infusion_core.errors import InfusionError
from ...infusion_core.tokens import BoundPrompt, bind_prompt, pick, standing
from .memory import Memory
from .mentions import MENTIONS, mentions_of, watched_key
from .token_line import TokenLine, of_several_texts, text_chunks, texts_of

_numbers = count()  # of mentions: nodes join the tokens of several tokenize calls


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
        clone = super().clone(*args, **kwargs)
        clone.__class__ = type(self)
        return _equip(clone, self.concepts, self.watched, self.memory)

    def tokenize(self, text: Any, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Tokens of a prompt, those of concepts' words bound; other nodes' parsers take a list of texts.

        Raises:
            InfusionError: a placeholder names no concept, or a word is ambiguous or tokenized differently.
        """
        words = {concept.name: concept.word for concept in self.concepts}
        if not isinstance(text, str):
            return self._tokenize_several(text, [bind_prompt(one, words) for one in text], return_word_ids, **kwargs)
        prompt = bind_prompt(text, words)
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
        """As the host's; a dict also holds the mentions, and states alone are remembered.

        Raises:
            InfusionError: a word is bound, but nobody can tell which states are its own.
        """
        out = super().encode_from_tokens(tokens, return_pooled=return_pooled, return_dict=return_dict)
        states = out["cond"] if return_dict else out[0] if isinstance(out, tuple) else out
        texts = texts_of(tokens)
        if len(texts) > 1:  # whoever asked will take them apart
            for number, text in enumerate(texts):
                own = states[number : number + 1]
                self.memory.add(own, mentions_of(text, own), copied=True)
            return out
        mentions = mentions_of(texts[0], states)
        self.memory.add(states, mentions, copied=not return_dict)
        if return_dict:
            out[MENTIONS] = (mentions,)
        return out

    def encode_from_tokens_scheduled(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """As the host's; each conditioning also holds the mentions. Errors as in `encode_from_tokens`."""
        scheduled = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for states, options in scheduled:
            if self.memory.of(states) is None:  # the host encodes for LoRA schedules by itself
                self.memory.add(states, mentions_of(tokens, states))
            options[MENTIONS] = self.memory.of(states)
        return scheduled

    def _tokenize_several(self, texts: Any, prompts: list[BoundPrompt], *args: Any, **kwargs: Any) -> dict[str, Any]:
        if [prompt.text for prompt in prompts] != list(texts):
            texts = copy(texts)
            texts[:] = [prompt.text for prompt in prompts]
        tokens: dict[str, Any] = super().tokenize(texts, *args, **kwargs)
        for encoder, chunks in tokens.items():
            for number, prompt in enumerate(prompts if of_several_texts(chunks) else ()):
                laid_out = text_chunks(chunks, number, self._tokenizer(encoder))
                self._bind(encoder, laid_out, prompt)
                for (ids, _), bound in zip(chunks, laid_out, strict=True):
                    ids[number] = [token for token, *_ in bound]
        return tokens

    def _tokenizer(self, encoder: str) -> Any:
        return getattr(self.tokenizer, f"clip_{encoder}", None)

    def _bind(self, encoder: str, chunks: list[list[Any]], prompt: BoundPrompt) -> None:
        line = TokenLine.read(self._tokenizer(encoder), encoder, chunks)
        for concept, chosen, seen in zip(self.concepts, prompt.chosen, prompt.seen, strict=True):
            found = pick(line.find(concept.word), chosen, concept.word, seen)
            if found and len(found[0]) != concept.tokens:
                raise InfusionError(
                    f"{concept.word!r} is {len(found[0])} tokens here but the concept {concept.name!r} was trained "
                    f"with {concept.tokens}; train it again on this model"
                )
            line.bind(concept.key, found, _numbers)
        for word in self.watched:
            chosen, seen = standing(prompt.text, word)
            line.bind(watched_key(word), pick(line.find(word), chosen, word, seen), _numbers)


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
