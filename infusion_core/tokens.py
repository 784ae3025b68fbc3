"""From words to token positions: which entries of the text context belong to a concept."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import InfusionError
from .letters import folded, places, stands_alone
from .spelling import Pieces, all_ascii, spelt_occurrences

Span = tuple[int, ...]  # context positions of one occurrence of a word, one per token
Chosen = tuple[int, ...] | None  # which occurrences of a word are meant, counted from 0; None for all of them

_PLACEHOLDER = re.compile(r"<([^<>]+)>")
_SURROGATE = re.compile("[\ud800-\udfff]")  # what is left of bytes that are not UTF-8


@dataclass(frozen=True)
class BoundPrompt:
    """A prompt with its placeholders replaced, and what each concept is bound to.

    Attributes:
        text: what the text encoder reads.
        words: per concept, its word.
        chosen: per concept, which occurrences of its word are its own.
        seen: per concept, how many occurrences of its word the text has, whosever they are.
    """

    text: str
    words: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    seen: tuple[int, ...]

    def mentions(self, concept: int) -> bool:
        """Whether the text holds the concept's word at all."""
        chosen = self.chosen[concept]
        return bool(self.seen[concept] if chosen is None else chosen)


def bind_prompt(prompt: str, concepts: Mapping[str, str]) -> BoundPrompt:
    """Bind concepts to the places where a prompt names them.

    ``<name>`` is replaced by the word of the concept called `name` and bound to that concept alone. A concept without
    a placeholder is bound to every occurrence of its word that no placeholder made. Case does not count, nor whether
    an accent is a letter's own or a sign behind it. In a script without spaces a word is wherever its letters are.

    Args:
        prompt: what the user wrote.
        concepts: word by name, in order.

    Raises:
        InfusionError: a placeholder names no concept or touches other letters, a word stands free that two concepts
            without a placeholder share, or the prompt is not Unicode.
    """
    text, made = _filled(prompt, concepts)
    line, placed, asked = folded(text), dict(made), Counter(concept for _, concept in made)
    chosen: list[Chosen] = []
    seen: list[int] = []
    claimed: dict[str, str] = {}
    for index, (name, word) in enumerate(concepts.items()):
        count, alone = _standing(line, word)
        seen.append(count)
        if index in asked:
            mine = tuple(k for k, start in alone if placed.get(start) == index)
            if len(mine) < asked[index]:
                raise InfusionError(f"<{name}> touches other letters in the prompt; put spaces around it")
            chosen.append(mine)
            continue
        free = tuple(k for k, start in alone if start not in placed)
        first = claimed.setdefault(folded(word), name)
        if free and first != name:
            raise InfusionError(
                f"the concepts {first!r} and {name!r} share the word {word!r}; write <{first}> and <{name}> instead"
            )
        chosen.append(None if len(free) == count and first == name else free)
    return BoundPrompt(text, tuple(concepts.values()), tuple(chosen), tuple(seen))


def standing(text: str, word: str) -> tuple[Chosen, int]:
    """Which occurrences of a word stand alone in a text, and how many there are: `chosen` and `seen` of `pick`."""
    count, alone = _standing(folded(text), word)
    return (None if len(alone) == count else tuple(k for k, _ in alone)), count


def says(text: str, word: str) -> bool:
    """Whether a word stands alone anywhere in a text."""
    chosen, count = standing(text, word)
    return count > 0 and chosen != ()


def _standing(line: str, word: str) -> tuple[int, list[tuple[int, int]]]:
    """How often a folded text has a word, and of those that stand alone which they are, and where they start."""
    found = list(places(line, folded(word).split()))
    return len(found), [(k, start) for k, (start, end) in enumerate(found) if stands_alone(line, start, end)]


def _filled(prompt: str, concepts: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """A prompt with words for placeholders, and for each where it stands in the folded text, with its concept."""
    if strange := _SURROGATE.search(prompt):
        raise InfusionError(f"the prompt holds {strange[0]!r}, which is no letter of Unicode; type that part again")
    names, words = {folded(name): i for i, name in enumerate(concepts)}, tuple(concepts.values())
    text, made, end = "", [], 0
    for match in _PLACEHOLDER.finditer(prompt):
        name = folded(match.group(1))
        if name not in names:
            if not all(map(_in_name, match.group(1))):
                continue
            loaded = ", ".join(f"<{n}>" for n in concepts) or "none"
            raise InfusionError(f"the prompt names <{match.group(1)}> but no such concept is loaded; loaded: {loaded}")
        text += prompt[end : match.start()]
        made.append((len(folded(text)), names[name]))
        text += words[names[name]]
        end = match.end()
    return text + prompt[end:], made


def _in_name(letter: str) -> bool:
    return letter in "_.-" or unicodedata.category(letter)[0] in "LMN"


def occurrences(
    ids: Sequence[int], starts: Sequence[bool], word: Sequence[int], pieces: Pieces | None = None
) -> list[range]:
    """Where a word's tokens stand among a text's.

    Args:
        ids: token ids of the text, without special tokens.
        starts: per token, whether a word starts there; a match must start and end at word boundaries.
        word: token ids of the word.
        pieces: of the vocabulary, if it is a CLIP's; then words of scripts without spaces are found too, by letters.

    Returns:
        Index ranges into `ids`, left to right, not overlapping; an empty one where the letters stand, but in tokens
        that are not theirs alone (`spelt_occurrences`).
    """
    if pieces is not None and not all_ascii(ids, pieces):
        return spelt_occurrences(ids, word, pieces)
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
    found: Sequence[range], chosen: Chosen, word: str, capacity: int, length: int, seen: int | None = None
) -> tuple[Span, ...]:
    """Context positions of a concept's occurrences.

    Args:
        found: what `occurrences` returned.
        chosen: the occurrences that belong to the concept.
        word: for the error message.
        capacity: text tokens that fit in one chunk of the context.
        length: context positions of one chunk; the first is the start token.
        seen: occurrences that the prompt's letters show, if that is known.

    Raises:
        InfusionError: the tokenizer sees other occurrences of the word than the prompt shows.
    """
    mine = pick(found, chosen, word, seen)
    return tuple(tuple(i // capacity * length + 1 + i % capacity for i in r) for r in mine)


def pick(found: Sequence[range], chosen: Chosen, word: str, seen: int | None = None) -> list[range]:
    """The occurrences of a word that belong to a concept; arguments and errors as in `spans`."""
    if chosen == ():
        return []
    counted = chosen is None or (chosen[-1] < len(found) and seen in (None, len(found)))
    picked = list(found) if chosen is None else [found[k] for k in chosen] if counted else []
    if not counted or not all(picked):
        raise InfusionError(f"the tokenizer does not see every {word!r} of the prompt as a word; put spaces around it")
    return picked
