"""The networks that score pictures with real weights, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from infusion_core.embedded import judges

from ..identity import digest_of_networks


@dataclass(frozen=True)
class Judges(judges.Judges):
    """CLIP ViT-B/32, DINO ViT-S/16 and, if there is one, HPSv2, whose results can be kept."""

    @cached_property
    def identity(self) -> str:
        """What they are: their weights."""
        return digest_of_networks(self.networks)
