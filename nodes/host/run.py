"""What is known of one sampling run: which regions name concepts, and which concepts have acted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .conds import Conds, entries_of
from .grown import Grown
from .rows import Entry

RUN = "infusion_run"  # in the transformer options: the `Run`
QUIET = "infusion_quiet"  # in them, too: a measurement runs the model, and nothing needs to act


@dataclass
class Run:
    """One sampling run.

    Attributes:
        named: keys of the concepts that conditionings name, and that are not switched off.
        regions: keys of the concepts that the regions of a conditioning name, by conditioning that has run.
        grown: what other nodes' patches make of the rows, by layout of a forward.
        considered: keys of the concepts whose window was open at some step.
        acted: keys of those whose residual was added somewhere.
    """

    named: frozenset[str] = frozenset()
    regions: dict[Entry, frozenset[str]] = field(default_factory=dict)
    grown: dict[Hashable, Grown] = field(default_factory=dict)
    considered: set[str] = field(default_factory=set)
    acted: set[str] = field(default_factory=set)

    def learn(self, found: Mapping[Entry, frozenset[str]]) -> None:
        """Note what the regions of conditionings name."""
        for entry, keys in found.items():
            self.regions[entry] = self.regions.get(entry, frozenset()) | keys

    def knows(self, conds: Conds) -> bool:
        """Whether every conditioning has run once, so that what its regions name is known."""
        return all(entry in self.regions for entry, _ in entries_of(conds))

    def has_seen(self, conds: Conds) -> None:
        """These conditionings have run."""
        self.learn({entry: frozenset() for entry, _ in entries_of(conds)})
