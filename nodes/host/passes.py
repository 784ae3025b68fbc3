"""One forward pass of the two streams: which rows supply query inputs, which receive residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.injection import Injection, inject
from ...infusion_core.sites import Site
from ...infusion_core.tokens import Span
from .attention import Triple
from .patch import Patch
from .rows import BaseRow, Entry, Rows, repeats_of, rows_of, site_name


@dataclass(frozen=True)
class Mention:
    """A concept's word in one conditioning: the concept's key, where the word stands, and the timestep bin."""

    key: str
    spans: tuple[Span, ...]
    bin: int


@dataclass(frozen=True)
class ConceptRows:
    """A conditioning whose rows are the concept stream, at one noise level.

    Attributes:
        injected: the concepts whose residuals are added.
        replaced: the rows attend with the base rows' maps.
        length: context positions that spans count in.
    """

    injected: Sequence[Mention]
    replaced: bool
    length: int


@dataclass
class TwoStreamPass:
    """A `Pass` with the two streams in it.

    Map replacement happens at the inputs, right where weights are shared: rows that take their base rows' query inputs
    have their attention maps, for keys are the same text's.

    Attributes:
        patch: what is at work.
        concept_rows: by conditioning; rows with a `BaseRow` are the base stream, all others the unpatched model's.
        pictures: in the batch; each conditioning has so many rows, or fewer.
        queries: of base rows whose concept rows are not in the same forward, (rows, N, C) by site and conditioning.
    """

    patch: Patch
    concept_rows: Mapping[Entry, ConceptRows]
    pictures: int
    queries: dict[tuple[str, Entry], Tensor] = field(default_factory=dict)
    _injections: dict[tuple[Any, ...], list[Injection]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sites: Mapping[str, Site] = {site.name: site for site in self.patch.base.sites}

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """Query inputs of base rows for concept rows, and context-space residuals."""
        site = self._sites[site_name(extra)]
        base, concept = self._streams(extra, len(query))
        query = self._replaced(site, query, base, [(e, r) for e, r in concept if self.concept_rows[e].replaced])
        for injection in self._residuals(concept, value):
            if not injection.in_value_space:
                value = injection.add_to(value, site)
        return query, key, value

    def projected(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """Value-space residuals."""
        site = self._sites[site_name(extra)]
        _, concept = self._streams(extra, len(value))
        for injection in self._residuals(concept, value):
            if injection.in_value_space:
                value = injection.add_to(value, site)
        return query, key, value

    def _replaced(self, site: Site, query: Tensor, base: Mapping[Entry, slice], concept: Rows) -> Tensor:
        """Query inputs (R, N, C), those of concept rows replaced by their base rows', from this forward or before."""
        for entry in base.keys() - {entry for entry, _ in concept}:
            self.queries[site.name, entry] = query[base[entry]].clone()
        replaced = query.clone() if concept else query
        for entry, rows in concept:
            replaced[rows] = query[base[entry]] if entry in base else self._noted(site, entry).to(query)
        return replaced

    def _noted(self, site: Site, entry: Entry) -> Tensor:
        if (site.name, entry) not in self.queries:
            raise InfusionError(
                f"another node took the base stream's rows away at {site.name}; put Infusion Attention Patch after it"
            )
        return self.queries[site.name, entry]

    def _residuals(self, concept: Rows, like: Tensor) -> list[Injection]:
        """Injections for the rows of one forward, made once per batch layout."""
        layout = tuple((entry, rows.start, rows.stop) for entry, rows in concept)
        cache = (layout, like.shape[1], like.dtype, like.device)
        if cache not in self._injections:
            self._injections[cache] = [i for entry, rows in concept for i in self._inject(entry, rows, like)]
        return self._injections[cache]

    def _inject(self, entry: Entry, rows: slice, like: Tensor) -> list[Injection]:
        count, conditioning = rows.stop - rows.start, self.concept_rows[entry]
        starts = repeats_of(conditioning.length, like.shape[1])
        made = []
        for mention in conditioning.injected:
            spans = [tuple(p + start for p in span) for start in starts for span in mention.spans]
            concept = self.patch.placed(mention.key, like.device, like.dtype)
            where = range(rows.start, rows.stop)
            made.append(inject(concept, where, [spans] * count, [mention.bin] * count, like.device))
        return made

    def _streams(self, extra: Mapping[str, Any], total: int) -> tuple[dict[Entry, slice], Rows]:
        """The rows of a forward that are the base stream, and those that are the concept stream."""
        base, concept = dict[Entry, slice](), Rows()
        for (index, uuid), rows in rows_of(extra, total, self.pictures, "Infusion Attention Patch"):
            if isinstance(uuid, BaseRow):
                base[index, uuid.original] = rows
            elif (index, uuid) in self.concept_rows:
                concept.append(((index, uuid), rows))
        return base, concept
