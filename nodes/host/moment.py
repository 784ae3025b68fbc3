"""One noise level of a sampling run: which concepts act, and which conditionings are the concept stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ...infusion_core.noise import bin_of
from .conds import Conds, entries_of
from .memory import mentions_in
from .passes import Acting, ConceptRows
from .patch import Patch, covers, share_of
from .rows import Entry
from .run import Run


@dataclass(frozen=True)
class Moment:
    """A noise level.

    Attributes:
        patch: what is at work.
        run: what is known of the sampling run.
        sigma: the noise level.
        sampling: the host's own schedule.
    """

    patch: Patch
    run: Run
    sigma: float
    sampling: Any

    @cached_property
    def share(self) -> float:
        """The share of the run that is over, as the host counts it: by the model's schedule, not by the sampler's."""
        return share_of(self.sigma, self.sampling)

    @cached_property
    def acting(self) -> Mapping[str, Acting]:
        """The concepts whose residual is added, and how."""
        found = {}
        for key, concept in self.patch.concepts.items():
            strength = concept.strength if concept.curve is None else concept.scaled(self.share).strength
            if strength and self._covers(concept.window):
                found[key] = Acting(self._bin(concept.residual.bins), strength)
        self.run.considered.update(found)
        return found

    def concept_rows(self, conds: Conds, own: bool) -> dict[Entry, ConceptRows]:
        """Every conditioning on which concepts act; `own`: the base stream has a latent of its own."""
        found: dict[Entry, ConceptRows] = {}
        for entry, cond in entries_of(conds):
            texts = mentions_in(cond, self.patch.memory)
            regions = self.patch.acting(self.run.regions.get(entry, frozenset()))
            named = [self.patch.named(text) | regions for text in texts]
            injected = [not keys.isdisjoint(self.acting) for keys in named]
            # On a shared latent the base stream's maps are the row's own wherever no residual is added.
            replaced = [(acts or own) and self._replaces(keys) for keys, acts in zip(named, injected, strict=True)]
            if any(injected) or any(replaced):
                found[entry] = ConceptRows(texts, tuple(replaced))
        return found

    def _replaces(self, keys: Collection[str]) -> bool:
        return any(self._covers(self.patch.concepts[key].map_window) for key in keys)

    def _covers(self, window: Any) -> bool:
        return covers(window, self.sigma, self.sampling)

    def _bin(self, bins: int) -> int:
        return int(bin_of(torch.tensor([self.sigma]), self.sampling.sigmas.float().cpu(), bins)) if bins > 1 else 0
