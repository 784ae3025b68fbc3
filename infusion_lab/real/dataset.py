"""Subjects with their prompts, and pairs of subjects: what a published dataset gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from infusion_core.tokens import standing

from ..methods.method import Subject


@dataclass(frozen=True)
class Pair:
    """Two subjects of one prompt.

    Attributes:
        subjects: whose class words can be told apart, see `apart`.
        prompts: with ``{0}`` and ``{1}`` where the subjects stand.
    """

    subjects: tuple[Subject, Subject]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Subjects with their class words, and what they are asked for.

    Attributes:
        title: of the dataset.
        subjects: what is learned, one after another.
        templates: prompts by a subject's name, with ``{}`` where the subject stands.
        captions: prompts with class words, for a covariance of text.
        pairs: subjects that are asked for together.
    """

    title: str
    subjects: tuple[Subject, ...]
    templates: Mapping[str, tuple[str, ...]]
    captions: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def prompts(self, subject: Subject) -> tuple[str, ...]:
        """The prompts of a subject."""
        return self.templates[subject.name]


def apart(one: Subject, other: Subject) -> bool:
    """Whether a prompt can name both: neither class word holds the other."""
    return not holds(one.word, other.word) and not holds(other.word, one.word)


def holds(text: str, word: str) -> bool:
    """Whether a text has a word, in the way that prompts are bound to concepts."""
    return standing(text, word)[1] > 0


def consecutive(subjects: Iterable[Subject], prompts: tuple[str, ...]) -> Iterator[Pair]:
    """Each subject with the next one that can be told apart from it; a subject is in one pair at most."""
    waiting: Subject | None = None
    for subject in subjects:
        if waiting is None:
            waiting = subject
        elif apart(waiting, subject):
            yield Pair((waiting, subject), prompts)
            waiting = None
