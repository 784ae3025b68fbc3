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
    a placeholder is bound to every occurrence of its word that no placeholder made, and that is no part of a longer
    word of another ("bear" in "teddy bear"). Case does not count, nor whether an accent is a letter's own or a sign
    behind it. In a script without spaces a word is wherever its letters are.

    Args:
        prompt: what the user wrote.
        concepts: word by name, in order.

    Raises:
        InfusionError: a placeholder names no concept or could name several, or touches other letters, a word stands
            free that two concepts without a placeholder share, or the prompt is not Unicode.
    """
    text, made = _filled(prompt, concepts)
    line, asked = folded(text), Counter(made.values())
    seen: list[int] = []
    own: list[list[_Place]] = []
    claimed: dict[str, str] = {}
    for index, (name, word) in enumerate(concepts.items()):
        count, alone = _standing(line, word)
        seen.append(count)
        if index in asked:
            own.append([place for place in alone if made.get(place.where) == index])
            if len(own[-1]) < asked[index]:
                raise InfusionError(f"<{name}> touches other letters in the prompt; put spaces around it")
            continue
        own.append([place for place in alone if not any(map(place.meets, made))])
        first = claimed.setdefault(folded(word), name)
        if own[-1] and first != name:
            raise InfusionError(
                f"the concepts {first!r} and {name!r} share the word {word!r}; write <{first}> and <{name}> instead"
            )
    taken = [place for places_ in own for place in places_]
    chosen: list[Chosen] = []
    for index, (name, word) in enumerate(concepts.items()):
        mine = tuple(place.number for place in own[index] if not any(map(place.lies_in, taken)))
        whole = len(mine) == seen[index] and index not in asked and claimed[folded(word)] == name
        chosen.append(None if whole else mine)
    return BoundPrompt(text, tuple(concepts.values()), tuple(chosen), tuple(seen))


def standing(text: str, word: str) -> tuple[Chosen, int]:
    """Which occurrences of a word stand alone in a text, and how many there are: `chosen` and `seen` of `pick`."""
    count, alone = _standing(folded(text), word)
    return (None if len(alone) == count else tuple(place.number for place in alone)), count


def says(text: str, word: str) -> bool:
    """Whether a word stands alone anywhere in a text."""
    chosen, count = standing(text, word)
    return count > 0 and chosen != ()


@dataclass(frozen=True)
class _Place:
    """One of a word's places in a folded text: its number among all of them, and (start, end)."""

    number: int
    where: tuple[int, int]

    def meets(self, other: tuple[int, int]) -> bool:
        """Whether it shares a letter with another part of the text."""
        return self.where[0] < other[1] and other[0] < self.where[1]

    def lies_in(self, longer: _Place) -> bool:
        """Whether it is a part of a longer one."""
        (start, end), (first, last) = self.where, longer.where
        return first <= start and end <= last and last - first > end - start


def _standing(line: str, word: str) -> tuple[int, list[_Place]]:
    """How often a folded text has a word, and where of those times it stands alone."""
    found = list(places(line, folded(word).split()))
    return len(found), [_Place(k, where) for k, where in enumerate(found) if stands_alone(line, *where)]


def _filled(prompt: str, concepts: Mapping[str, str]) -> tuple[str, dict[tuple[int, int], int]]:
    """A prompt with words for placeholders, and where each stands in the folded text, with its concept."""
    if strange := _SURROGATE.search(prompt):
        raise InfusionError(f"the prompt holds {strange[0]!r}, which is no letter of Unicode; type that part again")
    words = tuple(concepts.values())
    text, made, end = "", {}, 0
    for match in _PLACEHOLDER.finditer(prompt):
        concept = _called(match.group(1), tuple(concepts))
        if concept is None:
            continue
        text += prompt[end : match.start()]
        start = len(folded(text))
        text += words[concept]
        made[start, len(folded(text))] = concept
        end = match.end()
    return text + prompt[end:], made


def _called(name: str, names: tuple[str, ...]) -> int | None:
    """The concept that a placeholder names; None where it is no name at all."""
    if name in names:
        return names.index(name)
    alike = [index for index, other in enumerate(names) if folded(other) == folded(name)]
    if len(alike) > 1:
        either = " or ".join(f"<{names[index]}>" for index in alike)
        raise InfusionError(f"the prompt names <{name}>, which could be {either}; write it exactly")
    if not alike and all(map(_in_name, name)):
        loaded = ", ".join(f"<{n}>" for n in names) or "none"
        raise InfusionError(f"the prompt names <{name}> but no such concept is loaded; loaded: {loaded}")
    return alike[0] if alike else None


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
    if chosen == () or seen == 0:  # tokens may spell what letters do not say: "model 3" has those of "model3"
        return []
    counted = chosen is None or (chosen[-1] < len(found) and seen in (None, len(found)))
    picked = list(found) if chosen is None else [found[k] for k in chosen] if counted else []
    if not counted or not all(picked):
        raise InfusionError(f"the tokenizer does not see every {word!r} of the prompt as a word; put spaces around it")
    return picked
