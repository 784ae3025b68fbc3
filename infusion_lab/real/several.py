"""Two subjects in one prompt: how often one of them is missing.

Two questions, each with its own error. Is there a thing of the subject's class: CLIP, between the words of both classes
and those of an empty scene. Is there the subject rather than the other one: DINO, between the photos of both. Neither
says whether a dog is the very dog of the photos; the base model, which has never seen it, shows what that leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.judges import as_pixels
from infusion_core.embedded.photos import square, to_images
from infusion_core.errors import InfusionError

from ..measures import CLASS_WORD
from ..methods.method import Customised, Method, Subject
from ..report.tables import Table, brief, figures, more_than, table
from ..store import Cell, Result, Row
from ..studies.several import JOIN
from .dataset import Pair
from .known import class_similarity, class_thresholds, known_pictures, look_similarity, look_thresholds, seen_parts
from .presence import presence
from .setup import RealLab

STUDY = "several"
KNOWN = "known pictures"  # the yardstick of the measure, in place of a method
KNOWN_PICTURES = 32  # drawn of either class word alone
KNOWN_SEED = 400_000  # of the first of them
SHOWN = 3  # pictures kept for the report
COLUMNS = {
    "missing": ("subjects missing, by class", ".0%"),
    "missing_more": ("against the base", "+.0%"),
    "both": ("pictures with both classes", ".0%"),
    "look_missing": ("subjects missing, by look", ".0%"),
}
ERRORS = {
    "class_missed": ("class: there, called missing", ".0%"),
    "class_seen": ("class: missing, called there", ".0%"),
    "look_missed": ("look: there, called missing", ".0%"),
    "look_seen": ("look: missing, called there", ".0%"),
}
NOTE = (
    "By class: does a part of the picture speak for the words of the subject's class, against those of the other's and "
    "an empty scene's (CLIP)? By look: for the subject's photos, against the other's (DINO)? A thing of the right "
    "class that is not the subject passes both, as the base model's row shows. Means over pairs, ± half of the 95% "
    "interval."
)
KNOWN_NOTE = (
    "Thresholds are learned from halves of two pictures side by side: the base model's of either class word (class), "
    "and photos (look). These are their errors, each picture judged by what the others teach. Of a true rate r the "
    "measure shows r (1 - called there) + (1 - r) called missing. A drawn subject is less like the photos than another "
    "photo is, so by look more are called missing than photos can tell."
)


def cells(lab: RealLab) -> list[Cell]:
    """Per pair one for the known pictures, one for the base model with class words, and one per method.

    Raises:
        InfusionError: pairs are asked for and the dataset has none, or a subject has a single photo.
    """
    request, bench = lab.request, lab.bench
    if not request.pairs:
        return []
    if not lab.data.pairs:
        raise InfusionError(
            f"{lab.data.title} has no two subjects of different classes here; add photos of more subjects, and its "
            "dataset_multiconcept.json if it is CustomConcept101, or leave --pairs out"
        )
    out = []
    for pair in spread(lab.data.pairs, request.most(request.pairs)):
        asked = Asked.of(lab, pair)
        out.append(asked.known)
        drawn = asked.prompts, request.count, asked.known.name
        out.append(asked.cell(CLASS_WORD, partial(_class_words, asked), drawn))
        for method in bench.methods:
            source = [bench.source(method, s, steps, steps) for s, steps in bench.own_runs(method, asked.subjects)]
            out.append(asked.cell(method.key, partial(_method, asked, method), drawn, source))
    return out


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many pairs, or all, evenly over their order: neighbours in a published list are of one kind."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


@dataclass(frozen=True)
class Asked:
    """A pair of subjects, each with a rare word of its own, and what they are asked for."""

    lab: RealLab
    subjects: tuple[Subject, Subject]
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, lab: RealLab, pair: Pair) -> Asked:
        """A pair of the dataset.

        Raises:
            InfusionError: a subject has a single photo.
        """
        one, other = pair.subjects
        for subject in pair.subjects:
            if len(subject.photos) < 2:
                raise InfusionError(f"{subject.name} has one photo, --pairs needs two; add one or leave --pairs out")
        second = replace(other, rare_word=lab.request.second_word)
        return cls(lab, (one, second), pair.prompts[: lab.request.limit or None])

    @property
    def name(self) -> str:
        """Of both."""
        return JOIN.join(s.name for s in self.subjects)

    @property
    def known(self) -> Cell:
        """The thresholds and their errors."""
        count = max(2, self.lab.request.most(KNOWN_PICTURES))
        return self.cell(KNOWN, partial(_known, self, count), count)

    def cell(self, method: str, compute: Callable[[], Result], *depends: object) -> Cell:
        """A cell about the pair."""
        identities = [s.identity for s in self.subjects]
        return self.lab.bench.cell(STUDY, method, self.name, compute, identities, self.lab.judges.identity, *depends)

    def row(self, method: str, step: int, told: str, measure: str, value: float, seed: int) -> Row:
        """A number about the pair."""
        return Row(STUDY, method, self.name, step, told, seed, measure, float(value))


def _known(asked: Asked, count: int) -> Result:
    """Thresholds and how often they err."""
    lab, result = asked.lab, Result()
    bench, base = lab.bench, lab.bench.studio.base
    drawn = []
    for index, subject in enumerate(asked.subjects):
        prompt, first = CAPTION_TEMPLATES[0].format(subject.word), bench.seed + KNOWN_SEED + index * count
        drawn.append(as_pixels(Customised(base, ()).draw(prompt, count, first, bench.sampling), base.resolution))
    photos = [as_pixels(s.photos, base.resolution) for s in asked.subjects]
    by_class = class_thresholds(lab.judges, drawn, [s.word for s in asked.subjects])
    by_look = look_thresholds(lab.judges, photos)
    for subject, *thresholds in zip(asked.subjects, by_class, by_look, strict=True):
        for kind, found in zip(("class", "look"), thresholds, strict=True):
            told = {"threshold": found.value, "missed": found.missed, "seen": found.seen}
            rows = {f"{kind}_{name}": value for name, value in told.items()}
            result.rows += [asked.row(KNOWN, 0, subject.name, m, value, bench.seed) for m, value in rows.items()]
    shown = to_images(known_pictures(*drawn)[0][:SHOWN] * 2 - 1)
    result.pictures = {f"known to hold both, {i}": square(p, 256) for i, p in enumerate(shown, start=1)}
    return result


def _class_words(asked: Asked) -> Result:
    """The base model with both class words."""
    words = tuple(s.word for s in asked.subjects)
    return _measure(asked, CLASS_WORD, 0, Customised(asked.lab.bench.studio.base, words))


def _method(asked: Asked, method: Method) -> Result:
    bench = asked.lab.bench
    learned = [bench.train(method, s, [steps])[steps][0] for s, steps in bench.own_runs(method, asked.subjects)]
    return _measure(asked, method.key, bench.steps(method), method.apply(bench.studio, learned))


def _measure(asked: Asked, name: str, step: int, customised: Customised) -> Result:
    lab, result = asked.lab, Result()
    bench, judges, edge = lab.bench, lab.judges, lab.bench.studio.base.resolution
    above = {(r.prompt, r.measure): r.value for r in bench.store.result(asked.known).rows}
    photos = [judges.dino_images(as_pixels(s.photos, edge)) for s in asked.subjects]
    for index, prompt in enumerate(asked.prompts):
        pictures = customised.draw(prompt.format(*customised.phrases), lab.request.count, bench.seed, bench.sampling)
        pixels = as_pixels(pictures, edge)
        by_class = class_similarity(judges, pixels, [s.word for s in asked.subjects])
        by_look = look_similarity(seen_parts(judges, pixels), photos)
        there = []
        for which, subject in enumerate(asked.subjects):
            classes = presence(by_class, which) > above[subject.name, "class_threshold"]
            looks = presence(by_look, which) > above[subject.name, "look_threshold"]
            there.append(classes)
            for measure, found in (("missing", ~classes), ("look_missing", ~looks)):
                result.rows += [
                    asked.row(name, step, f"{subject.name}: {prompt}", measure, value, bench.seed + i)
                    for i, value in enumerate(found.tolist())
                ]
        both = (there[0] & there[1]).tolist()
        result.rows += [asked.row(name, step, prompt, "both", value, bench.seed + i) for i, value in enumerate(both)]
        if index < SHOWN:
            result.pictures[prompt] = square(pictures[0], 256)
    return result


def tables(rows: Sequence[Row], names: Mapping[str, str]) -> tuple[list[Table], Table]:
    """The tables for the page, and the one for a terminal."""
    found = figures(rows, STUDY)
    of_methods = {key: by for key, by in found.items() if key[0] != KNOWN}
    of_known = {key: by for key, by in found.items() if key[0] == KNOWN}
    more = more_than(of_methods, CLASS_WORD, ("missing",))
    shown = [
        table("Two subjects in one prompt", NOTE, more, COLUMNS, names),
        table("How often the measure errs", KNOWN_NOTE, of_known, ERRORS, names),
    ]
    return shown, brief("Two subjects in one prompt, means", more, COLUMNS, names)
