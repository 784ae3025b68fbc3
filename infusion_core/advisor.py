"""Which epoch to draw with, which to be guided by, and how strongly (DreamBlend leaves it open)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Generic, Protocol, TypeVar

from .captions import fill
from .dreamblend import BlendSettings
from .errors import InfusionError

P = TypeVar("P")  # a host's pictures of one prompt
P_co = TypeVar("P_co", covariant=True)
LITTLE = ("a", "an", "the", "of", "in", "on", "at", "and", "with", "to", "by")  # words whose attention says little
PROMPTS = (
    "a photo of {} on the beach",
    "a photo of {} in a forest in autumn",
    "a photo of {} on a city street at night",
    "an oil painting of {} beside a window",
)
BASE = "base"  # stands for the model before training
COLLAPSED = 0.01  # more overlap than the base's that calls for guidance where nothing else is known
FACTORS = (0.5, 1.0, 2.0)  # of the default alpha, that are tried
MOST_TRIALS = 2 * len(FACTORS)  # with either of two guides


@dataclass(frozen=True)
class Setup:
    """What draws.

    Attributes:
        late: the epoch that draws, or `BASE`.
        early: what guides it; None for nothing.
        alpha: how strongly.
    """

    late: str
    early: str | None = None
    alpha: float = 0.0

    @property
    def title(self) -> str:
        """For tables and grids."""
        return self.late if self.early is None else f"{self.late} guided by {self.early}, alpha {self.alpha:g}"


@dataclass(frozen=True)
class Judged:
    """How a setup's pictures were judged, means over the same prompts and seeds.

    Attributes:
        setup: what drew them.
        subject, prompt: likeness to the photos and to the prompts, higher is better; None where nobody could judge.
        collapse: how much more other words attend where the subject does than in the base model; None if guided.
    """

    setup: Setup
    subject: float | None
    prompt: float | None
    collapse: float | None = None


@dataclass(frozen=True)
class Advice:
    """The setup that is suggested, and why in one sentence."""

    setup: Setup
    reason: str


class Artist(Protocol[P_co]):
    """A host that draws."""

    def watched(self, name: str, prompt: str, subject: str, others: Sequence[str]) -> tuple[P_co, float]:
        """Pictures of a prompt by an epoch or `BASE`, and how much `others` attend where `subject` does, in [0, 1]."""
        ...

    def guided(self, setup: Setup, prompt: str) -> P_co:
        """Pictures of a prompt by one epoch under another's guidance."""
        ...


@dataclass(frozen=True)
class Survey(Generic[P]):
    """What every setup makes of the same prompts.

    Attributes:
        artist: draws.
        templates: prompts with ``{}`` for the subject.
        subject: what they say for it.
        scores: of the pictures of prompt number so-and-so: likeness and obedience, higher is better; None if nobody
            can judge.
        advance: called after each prompt.
        pictures: filled: by setup and prompt.
    """

    artist: Artist[P]
    templates: Sequence[str]
    subject: str
    scores: Callable[[int, P], tuple[float, float]] | None
    advance: Callable[[], object]
    pictures: dict[Setup, list[P]] = field(default_factory=dict)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn."""
        return fill(tuple(self.templates), self.subject, "prompt")

    def alone(self, epochs: Iterable[str]) -> list[Judged]:
        """The base model, then every epoch."""
        found: list[Judged] = []
        before = 0.0
        for name in (BASE, *epochs):
            overlaps = []
            for template, prompt in zip(self.templates, self.prompts, strict=True):
                shown, shared = self.artist.watched(name, prompt, *watched_words(template, self.subject))
                overlaps.append(shared)
                self._keep(Setup(name), shown)
            before = before if found else fmean(overlaps)
            found.append(self._judged(Setup(name), fmean(overlaps) - before))
        return found

    def guided(self, setups: Iterable[Setup]) -> list[Judged]:
        """Pairs."""
        found = []
        for setup in setups:
            for prompt in self.prompts:
                self._keep(setup, self.artist.guided(setup, prompt))
            found.append(self._judged(setup))
        return found

    def _keep(self, setup: Setup, shown: P) -> None:
        self.pictures.setdefault(setup, []).append(shown)
        self.advance()

    def _judged(self, setup: Setup, collapse: float | None = None) -> Judged:
        if self.scores is None:
            return Judged(setup, None, None, collapse)
        found = [self.scores(index, shown) for index, shown in enumerate(self.pictures[setup])]
        return Judged(setup, fmean(likeness for likeness, _ in found), fmean(prompt for _, prompt in found), collapse)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that do not say where the subject is, or nothing else.

    Raises:
        InfusionError: one holds ``{}`` not once, or no other word to watch.
    """
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise InfusionError(f"the prompt {prompt!r} must hold {{}} once, where the subject is named")
        if not watched_words(prompt, "{}")[1]:
            raise InfusionError(f"the prompt {prompt!r} says nothing beside the subject; say what else is to be seen")


def watched_words(template: str, subject: str) -> tuple[str, list[str]]:
    """The word of the subject that is watched, its last, and a prompt's other words; it has ``{}`` for the subject."""
    own = subject.split()[-1]
    words = dict.fromkeys(word.strip(",.;:").lower() for word in template.replace("{}", " ").split())
    return own, [word for word in words if word and word not in LITTLE and word != own.lower()]


def trials(alone: Sequence[Judged]) -> Iterator[Setup]:
    """What is worth trying beside the epochs alone: the one that has the subject best, guided by those that obey best.

    Args:
        alone: the base model first, then the epochs in the order of their training.
    """
    late = _best_subject(alone)
    guides = [BASE]
    if all(judged.prompt is not None for judged in alone):
        obedient = max(alone[1:], key=lambda judged: judged.prompt or 0.0).setup.late
        guides += [obedient] if obedient != late else []
    for early in guides:
        for factor in FACTORS:
            yield Setup(late, early, factor * BlendSettings().alpha)


def advise(alone: Sequence[Judged], tried: Sequence[Judged]) -> Advice:
    """The best of what was drawn.

    Subject and prompt count alike, each from the worst to the best that any setup reached. Where nobody could judge
    them, the last epoch is guided by the base model if its attention has collapsed.

    Args:
        alone: the base model first, then the epochs in the order of their training.
        tried: guided setups.
    """
    base, *epochs = alone
    every = [*epochs, *tried]
    if any(judged.subject is None or judged.prompt is None for judged in (base, *every)):
        last, collapse = epochs[-1].setup.late, epochs[-1].collapse or 0.0
        if collapse <= COLLAPSED:
            return Advice(Setup(last), f"its attention has not collapsed ({collapse:+.3f} against the base's)")
        setup = Setup(last, BASE, BlendSettings().alpha)
        return Advice(setup, f"its attention has collapsed by {collapse:.3f}; likeness was not judged")
    best = max(every, key=lambda judged: _total(judged, [base, *every]))
    single = max(epochs, key=lambda judged: _total(judged, [base, *every]))
    if best.setup.early is None:
        return Advice(best.setup, "no guidance that was tried is better than this epoch alone")
    return Advice(best.setup, f"better in likeness and prompt together than the best epoch alone ({single.setup.late})")


def _best_subject(alone: Sequence[Judged]) -> str:
    """The epoch that has the subject best; the last one where nobody could judge."""
    epochs = alone[1:]
    known = [judged for judged in epochs if judged.subject is not None]
    return max(known, key=lambda judged: judged.subject or 0.0).setup.late if known else epochs[-1].setup.late


def _total(judged: Judged, among: Sequence[Judged]) -> float:
    total = 0.0
    for measure in ("subject", "prompt"):
        values = [float(getattr(one, measure)) for one in among]
        spread = max(values) - min(values)
        total += (float(getattr(judged, measure)) - min(values)) / spread if spread else 0.0
    return total
