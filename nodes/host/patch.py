"""What a patched MODEL carries. Data only: `install` puts it on a clone, `streams` acts on it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...infusion_core.concepts import LoadedConcept
from ...infusion_core.residual_file import concept_bytes
from ...infusion_core.residuals import Base, Space
from ...infusion_core.schedule import ALWAYS, Window
from ...infusion_core.streams import BaseLatent
from .memory import Memory, execution
from .mentions import Mentions

HALVINGS = 24  # of the run, to the share at which it has a noise level
ATTACHED = "infusion"  # the host's attachment that holds the `Patch`, and the key of our wrappers
_Where = tuple[str, torch.device, torch.dtype]


@dataclass(frozen=True, eq=False)
class Patch:
    """Everything a patched model carries; shared by all its clones.

    Attributes:
        base: of the model.
        concepts: all that are at work, by key, in order.
        base_latent: where the base stream's latent comes from.
        memory: prompts the patched CLIP encoded.
        nodes: ids of the nodes that brought the concepts, by key, to say there what is wrong.
    """

    base: Base
    concepts: Mapping[str, LoadedConcept]
    base_latent: BaseLatent
    memory: Memory
    nodes: Mapping[str, str] = field(default_factory=dict)
    _placed: dict[_Where, LoadedConcept] = field(default_factory=dict, repr=False)
    _told: set[tuple[str | None, str]] = field(default_factory=set, repr=False)

    def __deepcopy__(self, memo: object) -> Patch:
        return self  # hosts copy what travels with a model; concepts are on their device once

    def tells(self, text: str) -> bool:
        """Whether the page is to hear this: once in an execution, which may hold many sampling runs."""
        new = (execution(), text) not in self._told
        self._told.difference_update([told for told in self._told if told[0] != execution()])
        self._told.add((execution(), text))
        return new

    def acting(self, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys whose concept is here and not switched off."""
        return frozenset(key for key in keys if key in self.concepts and self.concepts[key].strength)

    def named(self, mentions: Mentions | None) -> frozenset[str]:
        """Keys of the concepts that a text names and that are not switched off."""
        return self.acting(mentions.spans if mentions else ())

    def any_in(self, space: Space) -> bool:
        """Whether a concept's residuals are added to that."""
        return any(concept.residual.space == space for concept in self.concepts.values())

    def placed(self, key: str, device: torch.device, dtype: torch.dtype) -> LoadedConcept:
        """A concept where a pass computes, in its precision; brought there once, not at every step."""
        where = key, device, dtype
        if where not in self._placed:
            self._placed[where] = self.concepts[key].to(device, dtype)
        return self._placed[where]


def patch_of(model: Any) -> Patch | None:
    """The patch that a MODEL carries, if any."""
    found: Patch | None = model.get_attachment(ATTACHED)
    return found


def key_of(concept: LoadedConcept) -> str:
    """Identifies a concept by name and content, whatever its strength."""
    return f"{concept.name}:{hashlib.sha256(concept_bytes(concept.residual)).hexdigest()[:16]}"


def covers(window: Window, sigma: float, model_sampling: Any) -> bool:
    """Whether a noise level lies inside a window of the run, by the host's own schedule."""
    if window == ALWAYS:
        return True
    begins, ends = (float(model_sampling.percent_to_sigma(share)) for share in (window.start, window.end))
    return sigma <= begins and (sigma > ends or window.end == 1)


def share_of(sigma: float, model_sampling: Any) -> float:
    """The share of the run that is over at a noise level, by the host's own schedule.

    It is sought where the schedule gives that level: what a schedule calls a timestep need not be a share of anything.
    """
    over, ahead = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (over + ahead) / 2
        if sigma <= float(model_sampling.percent_to_sigma(middle)):
            over = middle
        else:
            ahead = middle
    return round(over, 6)
