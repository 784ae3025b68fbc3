"""Every method of the lab, with the recipes chosen on the tuning concepts (`infusion lab --tune`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..measures import CONCEPT, HEADLINE
from .apt import Apt
from .baseline import Baseline, Variant
from .dco import Dco
from .dreambooth import DreamBooth, DreamBoothLora, PlainDreamBooth
from .infusion import Infusion, small, without_maps
from .method import Method, Recipe
from .new_words import CustomDiffusion, TextualInversion
from .perfusion import Perfusion
from .space import ADAPTER, COMMON, NAMING, UNET, Choice, Knob, Space, Span, rate

TUNED = Path(__file__).parent / "tuned.json"
M = TypeVar("M", bound=Method, covariant=True)


@dataclass(frozen=True)
class Published(Generic[M]):
    """A method with the settings its paper or diffusers' script has, and what tuning may choose instead."""

    method: M
    space: Space
    source: str


# Learning rates of Stable Diffusion's size are low for a network of a few million parameters: the spans reach far up
# from them. The batch size is the same for all.
PUBLISHED: dict[str, Published[Baseline]] = {
    p.method.family: p
    for p in (
        Published(
            DreamBooth(Recipe(800, 5e-6, prior_weight=1.0, part="unet")),
            (*COMMON, rate(1e-6, 1e-3), UNET, Knob("prior_weight", Span(0.03, 3.0))),
            "diffusers train_dreambooth.py: lr 5e-6, 400 to 800 steps, 200 class pictures, prior weight 1",
        ),
        Published(
            PlainDreamBooth(Recipe(400, 5e-6, part="unet")),
            (*COMMON, rate(1e-6, 1e-3), UNET, NAMING),
            "diffusers train_dreambooth.py without prior preservation, its default: lr 5e-6, 400 steps",
        ),
        Published(
            DreamBoothLora(Recipe(500, 1e-4)),
            (
                *COMMON,
                rate(1e-5, 3e-2),
                *ADAPTER,
                NAMING,
                Knob("prior_weight", Choice((0.0, 0.3, 1.0)), only_if=("naming", "rare word")),
            ),
            "diffusers train_dreambooth_lora.py: rank 4, lr 1e-4, 500 steps",
        ),
        Published(
            Dco(Recipe(2000, 5e-5, rank=32)),
            (*COMMON, rate(1e-5, 3e-2), *ADAPTER, Knob("beta", Span(30.0, 30_000.0))),
            "the authors' customize.py: rank 32, lr 5e-5 and 5e-6 for the word, beta 1000, 2000 steps",
        ),
        Published(
            TextualInversion(Recipe(3000, 2e-3, captions="templates")),
            (*COMMON, rate(1e-4, 0.1)),
            "diffusers textual_inversion.py: lr 5e-4 scaled by 4, 3000 steps; the paper 5e-3",
        ),
        Published(
            CustomDiffusion(Recipe(250, 8e-5, prior_weight=1.0, part="keys and values")),
            (
                *COMMON,
                rate(1e-6, 3e-3),
                Knob("part", Choice(("keys and values", "cross-attention"))),
                Knob("prior_weight", Choice((0.0, 0.1, 0.3, 1.0))),
            ),
            "diffusers train_custom_diffusion.py: lr 1e-5 scaled by 8, 250 steps, 200 class pictures, prior weight 1",
        ),
        Published(
            Perfusion(Recipe(400, 0.03, captions="templates")),
            (*COMMON, rate(1e-3, 1.0), Knob("gate", Span(0.5, 0.8))),
            "the paper: lr 0.03 for values and 0.006 for the word, 400 steps, gate 0.75 and 0.1",
        ),
    )
}
OURS = Published(
    Infusion(),
    (
        *COMMON,
        rate(1e-3, 1.0),
        Knob("layout", Choice(("block", "layer", "value", "parts"))),
        Knob("parts", Choice((2, 3, 4, 6)), only_if=("layout", "parts")),
        Knob("key_scale", Span(0.1, 3.0), only_if=("layout", "parts")),
        Knob("key_rate", Span(0.1, 3.0), only_if=("layout", "parts")),
        Knob("where", Choice(("everywhere", "up"))),
        Knob("bins", Choice((1, 2, 4))),
        Knob("replace_maps", Choice((True, False))),
        Knob("replacement_end", Span(0.1, 1.0), only_if=("replace_maps", True)),
    ),
    "the project's defaults",
)
APT = Published(Apt(), (), "the paper's restraints, on a LoRA of diffusers' rate, rank and batch; not tuned")
TUNABLE: dict[str, Published[Method]] = {**PUBLISHED, OURS.method.family: OURS}
_EVERY: tuple[Published[Method], ...] = (*PUBLISHED.values(), APT, OURS)
SOURCES = {p.method.family: p.source for p in _EVERY}


def tuning(file: Path = TUNED) -> dict[str, Any]:
    """What `infusion lab --tune` found: ``methods``, by key the facts of their tuning and their ``trials``."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"methods": {}}
    return found


def best_of(trials: Sequence[dict[str, Any]], error: str, most_steps: int | None = None) -> dict[str, Any] | None:
    """Of the trials that learned every concept, in no more steps, the one with the least of an error; None if none."""
    whole = [t for t in trials if not t["pruned"] and t["settings"]["steps"] <= (most_steps or t["settings"]["steps"])]
    return min(whole, key=lambda trial: float(trial[error]), default=None)


def all_methods(most_steps: int) -> list[Method]:
    """The baselines by their published recipes and the tuned ones of no more steps, then APT and Infusion.

    Tuned are up to two: the best by the headline and, where it is another, the best by likeness. Infusion three times:
    as it is, in its smallest layout, and without map replacement.
    """
    baselines = [method for p in PUBLISHED.values() for method in _variants(p.method, most_steps)]
    return [*baselines, Apt(), Infusion(), small(), without_maps()]


def published_methods() -> list[Method]:
    """The baselines with their published recipes, then APT and Infusion."""
    return [*(p.method for p in PUBLISHED.values()), Apt(), Infusion()]


def _variants(method: Baseline, most_steps: int) -> list[Baseline]:
    """The published recipe, then the tuned ones."""
    trials = tuning()["methods"].get(method.family, {"trials": []})["trials"]
    found = [replace(method, variant="published")]
    chosen: list[dict[str, Any]] = []
    wanted: dict[Variant, str] = {"": HEADLINE, "likeness": CONCEPT}
    for variant, error in wanted.items():
        best = best_of(trials, error, most_steps)
        if best and best not in chosen:
            chosen.append(best)
            found.append(replace(method.changed(**best["settings"]), variant=variant))
    return found
