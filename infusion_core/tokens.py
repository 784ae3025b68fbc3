"""From words to token positions: which entries of the text context belong to a concept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import InfusionError

Span = tuple[int, ...]  # context positions of one occurrence of a word, one per token

_PLACEHOLDER = re.compile(r"<([\w.-]+)>")


@dataclass(frozen=True)
class BoundPrompt:
    """A prompt with its placeholders replaced, and what each concept is bound to.

    Attributes:
        text: what the text encoder reads.
        words: per concept, its word.
        chosen: per concept, which occurrences of its word are its own, counted from 0; None for all of them.
    """

    text: str
    words: tuple[str, ...]
    chosen: tuple[tuple[int, ...] | None, ...]

    def mentions(self, concept: int) -> bool:
        """Whether the text holds the concept's word at all."""
        chosen = self.chosen[concept]
        return bool(chosen) if chosen is not None else bool(_pattern(self.words[concept]).search(self.text))


def bind_prompt(prompt: str, concepts: Mapping[str, str]) -> BoundPrompt:
    """Bind concepts to the places where a prompt names them.

    ``<name>`` is replaced by the word of the concept called `name` and bound to that concept alone. A concept without
    a placeholder is bound to every occurrence of its word that no placeholder made.

    Args:
        prompt: what the user wrote.
        concepts: word by name, in order.

    Raises:
        InfusionError: a placeholder names no concept, or a word stands free that two concepts without one share.
    """
    names = {name.lower(): i for i, name in enumerate(concepts)}
    words = tuple(concepts.values())
    text, made, end = "", [], 0  # made: (start in text, concept)
    for match in _PLACEHOLDER.finditer(prompt):
        name = match.group(1).lower()
        if name not in names:
            loaded = ", ".join(f"<{n}>" for n in concepts) or "none"
            raise InfusionError(f"the prompt names <{match.group(1)}> but no such concept is loaded; loaded: {loaded}")
        text += prompt[end : match.start()]
        made.append((len(text), names[name]))
        text += words[names[name]]
        end = match.end()
    text += prompt[end:]

    placed = dict(made)
    with_placeholder = set(placed.values())
    chosen: list[tuple[int, ...] | None] = []
    claimed: dict[str, str] = {}
    for index, (name, word) in enumerate(concepts.items()):
        starts = [m.start() for m in _pattern(word).finditer(text)]
        if index in with_placeholder:
            chosen.append(tuple(k for k, s in enumerate(starts) if placed.get(s) == index))
            continue
        free = tuple(k for k, s in enumerate(starts) if s not in placed)
        first = claimed.setdefault(word.lower(), name)
        if free and first != name:
            raise InfusionError(
                f"the concepts {first!r} and {name!r} share the word {word!r}; write <{first}> and <{name}> instead"
            )
        chosen.append(None if len(free) == len(starts) and first == name else free)
    return BoundPrompt(text, words, tuple(chosen))


def occurrences(ids: Sequence[int], starts: Sequence[bool], word: Sequence[int]) -> list[range]:
    """Where a word's tokens stand among a text's.

    Args:
        ids: token ids of the text, without special tokens.
        starts: per token, whether a word starts there; a match must start and end at word boundaries.
        word: token ids of the word.

    Returns:
        Index ranges into `ids`, left to right, not overlapping.
    """
    found, i, n = [], 0, len(word)
    while n and i + n <= len(ids):
        ends = i + n == len(ids) or starts[i + n]
        if starts[i] and ends and list(ids[i : i + n]) == list(word):
            found.append(range(i, i + n))
            i += n
        else:
            i += 1
    return found


def spans(
    found: Sequence[range], chosen: tuple[int, ...] | None, word: str, capacity: int, length: int
) -> tuple[Span, ...]:
    """Context positions of a concept's occurrences.

    Args:
        found: what `occurrences` returned.
        chosen: the occurrences that belong to the concept, or None for all.
        word: for the error message.
        capacity: text tokens that fit in one chunk of the context.
        length: context positions of one chunk; the first is the start token.

    Raises:
        InfusionError: the tokenizer sees fewer occurrences of the word than the prompt shows.
    """
    return tuple(tuple(i // capacity * length + 1 + i % capacity for i in r) for r in pick(found, chosen, word))


def pick(found: Sequence[range], chosen: tuple[int, ...] | None, word: str) -> list[range]:
    """The occurrences of a word that belong to a concept; arguments and errors as in `spans`."""
    if chosen and chosen[-1] >= len(found):
        raise InfusionError(f"the tokenizer does not see every {word!r} of the prompt as a word; put spaces around it")
    return list(found) if chosen is None else [found[k] for k in chosen]


def _pattern(word: str) -> re.Pattern[str]:
    letters = r"[^\W\d_]"  # tokenizers split words where letters end
    body = r"\s+".join(re.escape(part) for part in word.split())
    return re.compile(rf"(?<!{letters}){body}(?!{letters})", re.IGNORECASE)
