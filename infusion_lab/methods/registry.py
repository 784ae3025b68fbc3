"""Every method of the lab, with the recipes chosen on the tuning concepts (`infusion lab --tune`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .baseline import Baseline
from .dreambooth import DreamBooth, DreamBoothLora, PlainDreamBooth
from .infusion import Infusion, without_maps
from .method import Method, Recipe
from .new_words import CustomDiffusion, TextualInversion
from .perfusion import Perfusion

TUNED = Path(__file__).parent / "tuned.json"


@dataclass(frozen=True)
class Published:
    """A baseline with the settings its paper or diffusers' script has, and the learning rates that tuning tries."""

    method: Baseline
    rates: tuple[float, ...]
    source: str


# Learning rates of Stable Diffusion's size are low for a network of 4 million parameters: the grids reach up from
# them. The batch size is the same for all.
PUBLISHED: dict[str, Published] = {
    p.method.family: p
    for p in (
        Published(
            DreamBooth(Recipe(800, 5e-6, prior_weight=1.0, part="unet")),
            (5e-6, 5e-5, 1e-4, 2e-4),
            "diffusers train_dreambooth.py: lr 5e-6, 400 to 800 steps, 200 class pictures, prior weight 1",
        ),
        Published(
            PlainDreamBooth(Recipe(400, 5e-6, part="unet")),
            (5e-6, 2e-5, 5e-5, 1e-4),
            "diffusers train_dreambooth.py without prior preservation, its default: lr 5e-6, 400 steps",
        ),
        Published(
            DreamBoothLora(Recipe(500, 1e-4)),
            (1e-4, 3e-4, 1e-3),
            "diffusers train_dreambooth_lora.py: rank 4, lr 1e-4, 500 steps",
        ),
        Published(
            TextualInversion(Recipe(3000, 2e-3, captions="templates")),
            (5e-4, 2e-3, 5e-3),
            "diffusers textual_inversion.py: lr 5e-4 scaled by 4, 3000 steps; the paper 5e-3",
        ),
        Published(
            CustomDiffusion(Recipe(250, 1e-5, prior_weight=1.0, part="keys and values")),
            (1e-5, 5e-5, 1e-4, 3e-4),
            "diffusers train_custom_diffusion.py: lr 1e-5, 250 steps, 200 class pictures, prior weight 1",
        ),
        Published(
            Perfusion(Recipe(400, 0.03, captions="templates")),
            (0.01, 0.03, 0.1),
            "the paper: lr 0.03 for values and 0.006 for the word, 400 steps, gate 0.75 and 0.1",
        ),
    )
}


def tuning(file: Path = TUNED) -> dict[str, Any]:
    """What `infusion lab --tune` found: the ``grid``, a line per method, learning rate and number of steps."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"grid": []}
    return found


def all_methods(most_steps: int) -> list[Method]:
    """The baselines with their best tuned recipes of no more steps (the published ones without any), then Infusion.

    Infusion twice: as it is, and without map replacement.
    """
    return [*(_tuned(p.method, most_steps) for p in PUBLISHED.values()), Infusion(), without_maps()]


def published_methods() -> list[Method]:
    """The baselines with their published recipes, then Infusion."""
    return [*(p.method for p in PUBLISHED.values()), Infusion()]


def _tuned(method: Baseline, most_steps: int) -> Baseline:
    lines = [ln for ln in tuning()["grid"] if ln["method"] == method.key and ln["steps"] <= most_steps]
    best = min(lines, key=lambda line: line["objective"], default=None)
    return method.changed(learning_rate=best["learning_rate"], steps=best["steps"]) if best else method
