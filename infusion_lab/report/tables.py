"""Tables of the report: means over concepts and training seeds with 95% intervals over both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infusion_core.embedded.evaluate import gap_closed

from ..measures import CLASS_WORD, CONCEPT, HEADLINE, LOOK_IN_WORDS, PROMPT
from ..store import Row, means
from ..studies import ablations, curves, fidelity, restraints, several, toy
from .intervals import Unit, interval

BASES = (CLASS_WORD, LOOK_IN_WORDS)
Figures = Mapping[tuple[str, str], Mapping[Unit, float]]  # by method and measure: value by concept and training seed


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and a line of explanation."""

    title: str
    note: str
    header: tuple[str, ...]
    lines: list[list[str]]


def figures(rows: Sequence[Row], study: str, step: int | None = None) -> Figures:
    """Means per method, measure and concept of one study, at one step if given."""
    chosen = [r for r in rows if r.study == study and (step is None or r.step == step)]
    found: dict[tuple[str, str], dict[Unit, float]] = {}
    for (method, measure, unit), value in means(
        chosen, lambda r: (r.method, r.measure, Unit(r.concept, r.training_seed))
    ).items():
        found.setdefault((method, measure), {})[unit] = value
    return found


def together(rows: Sequence[Row], size: int) -> Figures:
    """The figures of the groups of so many concepts, with ``leaked``.

    That is the others' share of what things wear over their own: of what was learned, how much went astray. A method
    that has learned too little of a group to say has none there.
    """
    found = figures([r for r in rows if several.size(r.concept) == size], several.STUDY)
    leaked = {
        (method, "leaked"): {
            group: found[method, "other_share"][group] / own for group, own in by.items() if own >= several.LEARNED
        }
        for (method, measure), by in found.items()
        if measure == "own_share"
    }
    return {**found, **{key: by for key, by in leaked.items() if by}}


def errors_by_prompt(rows: Sequence[Row], study: str) -> Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]]:
    """Concept and prompt error by method and error, then by concept and prompt, means over seeds of all kinds."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    told = [r for r in rows if r.study == study and r.prompt and r.measure in (CONCEPT, PROMPT)]
    for (method, concept, prompt, measure), value in means(
        told, lambda r: (r.method, r.concept, r.prompt, r.measure)
    ).items():
        found.setdefault((method, measure), {}).setdefault(concept, {})[prompt] = value
    return found


def with_trade(found: Figures) -> Figures:
    """The figures with ``gap_closed`` and ``scene_ratio``, where the yardsticks, which nobody trains, are beside them.

    Both are ratios of one concept's errors, so that their intervals are over concepts and training seeds as others'.
    """
    bare, told = ({unit.concept: v for unit, v in found.get((name, CONCEPT), {}).items()} for name in BASES)
    scenes = {unit.concept: value for unit, value in found.get((CLASS_WORD, "scene_error"), {}).items()}
    ratios = {
        (method, "scene_ratio"): {unit: value / scenes[unit.concept] for unit, value in by.items()}
        for (method, measure), by in found.items()
        if measure == "scene_error" and {unit.concept for unit in by} <= scenes.keys()
    }
    gaps = {
        (method, "gap_closed"): {
            unit: gap_closed(bare[unit.concept], told[unit.concept], value)
            for unit, value in by.items()
            if unit.concept in bare and unit.concept in told
        }
        for (method, measure), by in found.items()
        if measure == CONCEPT
    }
    return {**found, **{key: by for key, by in (gaps | ratios).items() if by}}


def table(
    title: str, note: str, found: Figures, columns: Mapping[str, tuple[str, str]], names: Mapping[str, str]
) -> Table:
    """A line per method, a column per measure.

    Args:
        title, note: of the table.
        found: see `figures`.
        columns: heading and format by measure.
        names: what a method is called; its key by default.
    """
    methods = list(dict.fromkeys(method for method, _ in found))
    shown = {m: c for m, c in columns.items() if any((name, m) in found for name in methods)}
    lines = []
    for method in methods:
        cells = [cell(found.get((method, m), {}), form) for m, (_, form) in shown.items()]
        lines.append([names.get(method, method), *cells])
    return Table(title, note, ("", *(heading for heading, _ in shown.values())), lines)


def cell(by_unit: Mapping[Unit, float], form: str) -> str:
    """``mean ± half of the 95% interval``, or the mean alone where there is one concept."""
    if not by_unit:
        return ""
    span = interval(by_unit)
    text = format(span.mean, form)
    return f"{text} ± {format(span.half, form.lstrip('+'))}" if span.half else text


def brief(title: str, found: Figures, columns: Mapping[str, tuple[str, str]], names: Mapping[str, str]) -> Table:
    """Means alone, for a terminal, which is narrow; see `table`."""
    return table(title, "", {key: {Unit(""): interval(by).mean} for key, by in found.items()}, columns, names)


ERRORS = {
    "picture_error": ("picture error", ".3f"),
    "concept_error": ("concept error", ".3f"),
    "gap_closed": ("gap closed", ".0%"),
    "prompt_error": ("prompt error", ".3f"),
    "rim_error": ("rim error", ".3f"),
    "shape_error": ("shape error", ".3f"),
    "scene_error": ("scene error", ".4f"),
    "scene_ratio": ("scene error / base's", ".2f"),
    "position_error": ("position error (px)", ".1f"),
    "size_error": ("size error", ".3f"),
    "diversity": ("diversity", ".3f"),
    "layout_repeated": ("photos' layout repeated", ".0%"),
}


def fidelity_table(rows: Sequence[Row], costs: Sequence[Row], names: Mapping[str, str]) -> Table:
    """Table 1's analogue."""
    found = with_trade(figures([*rows, *costs], fidelity.STUDY))
    columns = {
        **ERRORS,
        "fisher": ("Fisher divergence", ".3g"),
        "bytes": ("stored bytes", ",.0f"),
        "training_seconds": ("training (s)", ".0f"),
        "sampling_ratio": ("sampling / base's", ".2f"),
    }
    note = (
        "Unseen prompts scored by the oracle. Concept error: inside the thing, against the concept; rim error: along "
        "its edge alone, which no caption can tell. Gap closed: the way from the class word to the look in words. "
        "Prompt error: scene error, shape error and position error as a share of the picture's edge. Picture error, "
        "the headline: concept error and prompt error. Diversity "
        "and layout repeated, the mean of the shares with the photos' background and with their position: of a bare "
        "prompt."
    )
    return table("Every method beside every other", note, found, columns, names)


def brief_tables(rows: Sequence[Row], names: Mapping[str, str]) -> list[Table]:
    """What a terminal shows: the main figures of the studies that have yardsticks."""
    columns = {m: ERRORS[m] for m in (HEADLINE, CONCEPT, "gap_closed", PROMPT)}
    columns |= {"layout_repeated": ("photos' layout", ".0%"), "fisher": ("Fisher", ".3g")}
    titles = {fidelity.STUDY: "Every method, means", ablations.STUDY: "Parts of Infusion, means"}
    titles[restraints.STUDY] = "APT's restraints, means"
    found = [brief(title, with_trade(figures(rows, study)), columns, names) for study, title in titles.items()]
    return [shown for shown in found if shown.lines]


def steps_table(rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    """The curves' last point."""
    last = max((r.step for r in rows if r.study == curves.STUDY), default=0)
    columns = {
        "fisher": ("Fisher divergence, other concepts", ".3g"),
        "w2_class": ("W2², class word", ".1f"),
        "w2_concept": ("W2², concept's phrase", ".1f"),
        **ERRORS,
    }
    note = (
        "W2²: squared 2-Wasserstein distance, Ledoit-Wolf shrinkage, between latents the base model and the customised "
        "one draw for the class word. Infusion binds the class word itself, so with the concept loaded the class word "
        "is the concept; called as <name>, the bare class word is untouched and its distance 0."
    )
    return table(f"After {last} steps", note, with_trade(figures(rows, curves.STUDY, last)), columns, names)


def several_tables(rows: Sequence[Row], names: Mapping[str, str]) -> list[Table]:
    """Leakage between concepts of one prompt, a table per number of concepts."""
    columns = {
        "own_error": ("error against its own concept", ".3f"),
        "own_share": ("share of its own look", ".0%"),
        "other_share": ("share of another's", ".0%"),
        "leaked": ("leaked of what was learned", ".0%"),
        "missing": ("things missing or merged", ".0%"),
        "scene_error": ("scene error", ".4f"),
    }
    note = (
        "Joint methods (DreamBooth, LoRA, Custom Diffusion) learn the concepts of a prompt in one run. Shares: how "
        "much of a look a thing wears; a thing whose look nobody chose has 0 of each on average. Another's: the mean "
        "over the others. Leaked: that share over "
        f"its own, where its own is at least {several.LEARNED:.0%}."
    )
    sizes = sorted({several.size(r.concept) for r in rows if r.study == several.STUDY})
    return [table(f"{size} concepts in one prompt", note, together(rows, size), columns, names) for size in sizes]


def ablation_table(rows: Sequence[Row]) -> Table:
    """What each part of Infusion is good for."""
    columns = {
        "picture_error_more": ("picture error, against Infusion's", "+.3f"),
        "concept_error_more": ("concept error, against Infusion's", "+.3f"),
        "prompt_error_more": ("prompt error, against Infusion's", "+.4f"),
        **ERRORS,
        "bytes": ("stored bytes", ",.0f"),
    }
    note = (
        "On the tuning concepts. Most lines change one thing, the others say what; the strength sweep scales "
        "the same residual. The differences are paired over concepts."
    )
    found = with_trade(figures(rows, ablations.STUDY))
    more = more_than(found, ablations.PLAIN, (HEADLINE, CONCEPT, PROMPT), BASES)
    return table("Parts of Infusion", note, more, columns, {})


def more_than(found: Figures, plain: str, measures: Sequence[str], beside: Sequence[str] = ()) -> Figures:
    """The figures with each method's differences from `plain`, concept by concept, as ``<measure>_more``.

    Args:
        found: see `figures`.
        plain: the method that the others are held against.
        measures: that are compared.
        beside: methods that are not.
    """
    more = {
        (method, f"{measure}_more"): {
            c: value - found[plain, measure][c] for c, value in by.items() if c in found[plain, measure]
        }
        for (method, measure), by in found.items()
        if measure in measures and method not in (plain, *beside) and (plain, measure) in found
    }
    return {**found, **more}


def toy_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per toy world."""
    columns = {
        "w2_class_b": ("W2² of class B from the base's", ".3f"),
        "distance_to_samples": ("distance of A's mean to the samples", ".2f"),
        "spread_kept": ("spread of A over the base's", ".2f"),
    }
    worlds = dict.fromkeys(r.concept for r in rows if r.study == toy.STUDY)
    return [
        table(f"World “{w}”", "", figures([r for r in rows if r.concept == w], toy.STUDY), columns, {}) for w in worlds
    ]
