"""A concept at a strength: what a user loads, under a name, and how it is to act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from .errors import InfusionError
from .residuals import ConceptResidual
from .schedule import ALWAYS, Curve, Window
from .sites import Site

LARGEST_SCALE = 1000.0  # of a strength or of guidance; pictures are long spoilt by then


@dataclass(frozen=True)
class LoadedConcept:
    """One concept at work, the same thing in every host.

    Attributes:
        name: what ``<name>`` in a prompt refers to.
        residual: what was learned.
        strength: the user's scale of the residual; 0 is the base model.
        blocks: further scale by UNet block (``mid``, ``up.1``); blocks not named stay at 1.
        window: when the residual is added.
        replacement: when rows that name the concept attend with the base stream's maps; None for "as it was trained".
        curve: further scale over the run; None stays at 1.

    Raises:
        InfusionError: a strength is not a number, or so large that it is a slip of the finger.
    """

    name: str
    residual: ConceptResidual
    strength: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    window: Window = ALWAYS
    replacement: Window | None = None
    curve: Curve | None = None

    def __post_init__(self) -> None:
        for strength in (self.strength, *self.blocks.values()):
            if not abs(strength) <= LARGEST_SCALE:
                raise InfusionError(
                    f"the strength of {self.name!r} must be a number up to {LARGEST_SCALE:g}, got {strength:g}; "
                    "1 is as it was trained"
                )

    @property
    def map_window(self) -> Window:
        """When rows that name the concept attend with the base stream's maps."""
        if self.replacement is not None:
            return self.replacement
        return self.residual.map_window

    def strength_at(self, site: Site) -> float:
        """The scale of the residual at a site."""
        return self.strength * self.blocks.get(site.block, 1.0)

    def scaled(self, share: float) -> LoadedConcept:
        """The concept as it acts at a share of the run: its strength is what the curve leaves of it."""
        return self if self.curve is None else replace(self, strength=self.strength * self.curve.at(share), curve=None)

    def adds_at(self, share: float) -> bool:
        """Whether a step that begins at that share of the run adds the residual: in the window, the curve not 0."""
        return self.window.covers(share) and (self.curve is None or self.curve.at(share) != 0)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LoadedConcept:
        """A copy whose residual is on another device and in another precision."""
        return replace(self, residual=self.residual.to(device, dtype))


def words_of(concepts: Sequence[LoadedConcept]) -> dict[str, str]:
    """Each concept's word by its name, in order."""
    return {concept.name: concept.residual.word for concept in concepts}
