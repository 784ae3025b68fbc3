"""Tables of the studies about LoRA and full fine-tunes: DreamBlend, and APT's ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..measures import CONCEPT, PROMPT
from ..store import Row
from ..studies import apt, blend, restraints
from .tables import BASES, ERRORS, Figures, Table, figures, more_than, table, with_trade


def blend_table(rows: Sequence[Row]) -> Table:
    """Snapshots alone and under the guidance of earlier ones."""
    columns = {**ERRORS, "collapse": ("collapse", ".3f")}
    del columns["gap_closed"], columns["scene_ratio"]
    note = (
        "Runs that are trained too long. A late snapshot draws alone, or is guided by an earlier one or by the base "
        "model (DreamBlend): its latent moves down the gradient of the attention maps' difference by alpha, or a share "
        "alpha of its maps is replaced. All draw from the same seeds. “As advised” is what the advisor chose, by other "
        "prompts and seeds. Collapse is how much more other words attend where the subject does than in the base model."
    )
    return table("DreamBlend", note, figures(rows, blend.STUDY), columns, {})


def apt_table(rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    """A LoRA with one restraint after the other, at every step that is kept."""
    compared = {
        "concept_error_more": ("concept error, against the plain LoRA's", "+.3f"),
        "prompt_error_more": ("prompt error, against the plain LoRA's", "+.4f"),
        "fisher_more": ("Fisher divergence, against the plain LoRA's", "+.2f"),
        "diversity_more": ("diversity, against the plain LoRA's", "+.2f"),
    }
    columns = {
        **compared,
        **ERRORS,
        "fisher": ("Fisher divergence, other concepts", ".3g"),
        "w2_class": ("W2², class word", ".1f"),
        "class_precision": ("precision, class word", ".0%"),
        "class_recall": ("recall, class word", ".0%"),
    }
    del columns["gap_closed"], columns["scene_ratio"]
    note = (
        "Every run is as long as the last step, at its own rate; none is chosen by what it came to. Precision: the "
        "share of what the class word alone draws that the base model could have drawn; recall: the share of the base "
        "model's that is still drawn. Both by distances of latents. The plain LoRA, as long, is what the others are "
        "held against, concept by concept."
    )
    measures = [name.removesuffix("_more") for name in compared]
    steps = sorted({row.step for row in rows if row.study == apt.STUDY})
    found: Figures = {
        (f"{names.get(method, method)}, {step} steps", measure): values
        for step in steps
        for (method, measure), values in more_than(figures(rows, apt.STUDY, step), apt.PLAIN, measures).items()
    }
    return table("APT's ladder", note, found, columns, {})


def restraints_table(rows: Sequence[Row]) -> Table:
    """What each of APT's restraints is good for."""
    columns = {
        "concept_error_more": ("concept error, against the plain LoRA's", "+.3f"),
        "prompt_error_more": ("prompt error, against the plain LoRA's", "+.4f"),
        "fisher_more": ("Fisher divergence, against the plain LoRA's", "+.2f"),
        **ERRORS,
        "fisher": ("Fisher divergence", ".3g"),
    }
    note = (
        f"On the tuning concepts, {restraints.STEPS} steps by diffusers' recipe. Adaptive: augmentation and weight "
        "by the indicator. The differences are paired over concepts."
    )
    found = with_trade(figures(rows, restraints.STUDY))
    more = more_than(found, restraints.PLAIN, (CONCEPT, PROMPT, "fisher"), BASES)
    return table("APT's restraints", note, more, columns, {})
