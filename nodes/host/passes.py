"""One forward pass of the host's UNet under Infusion: which rows supply queries, which receive residuals.

The state of a pass travels in the host's ``transformer_options`` (key ``infusion``) and reaches the patches from
there. A pass without it is the unpatched model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.residuals import ConceptResidual, Infusion, infuse
from ...infusion_core.sites import Site
from ...infusion_core.tokens import Span

KEY = "infusion"
Entry = tuple[int, UUID]  # one conditioning of a pass: index of its list, and its uuid
Rows = list[tuple[Entry, slice]]  # conditionings of a forward and their rows
_EVERY_BIT = (1 << 128) - 1


class BaseRow(UUID):
    """The uuid of a conditioning's rows in the base stream: one of its own, since step caches keep outputs by uuid."""

    @classmethod
    def of(cls, uuid: UUID) -> BaseRow:
        """The base stream's twin of a conditioning."""
        return cls(int=uuid.int ^ _EVERY_BIT)

    @property
    def original(self) -> UUID:
        """The conditioning's own uuid."""
        return UUID(int=self.int ^ _EVERY_BIT)


@dataclass(frozen=True)
class Bound:
    """A conditioning with concepts.

    Attributes:
        concepts: residual, strength, spans of the word and timestep bin.
        length: context positions the spans count in.
    """

    concepts: Sequence[tuple[ConceptResidual, float, tuple[Span, ...], int]]
    length: int


@dataclass
class Pass:
    """What one forward pass does.

    Attributes:
        sites: the model's, by name.
        bound: the conditionings whose rows are the concept stream; those with a `BaseRow` are the base stream.
        pictures: in the batch; each conditioning has so many rows, or fewer.
        replacing: the concept stream attends with the base stream's query inputs.
        queries: of base rows whose concept rows are not in the same forward, (rows, N, C) by site and conditioning.
    """

    sites: Mapping[str, Site]
    bound: Mapping[Entry, Bound]
    pictures: int
    replacing: bool
    queries: dict[tuple[str, Entry], Tensor] = field(default_factory=dict)
    _infusions: dict[tuple[Any, ...], list[Infusion]] = field(default_factory=dict)

    def context_inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The three inputs of cross-attention, (R, N, C), (R, L, D), (R, L, D), as this pass wants them."""
        site = self.sites[site_name(extra)]
        base, concept = self._streams(extra, len(query))
        if self.replacing:
            query = self._replaced(site, query, base, concept)
        for infusion in self._residuals(concept, value):
            if not infusion.in_value_space:
                value = infusion.add_to(value, site)
        return query, key, value

    def projected_value(self, value: Tensor, extra: Mapping[str, Any]) -> Tensor:
        """The projected value (R, L, heads * head width) with value-space residuals added."""
        site = self.sites[site_name(extra)]
        _, concept = self._streams(extra, len(value))
        for infusion in self._residuals(concept, value):
            if infusion.in_value_space:
                value = infusion.add_to(value, site)
        return value

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

    def _residuals(self, concept: Rows, like: Tensor) -> list[Infusion]:
        """Infusions for the rows of one forward, made once per batch layout."""
        length = like.shape[1]
        layout = tuple((entry, rows.start, rows.stop) for entry, rows in concept)
        cache = (layout, length, like.dtype, like.device)
        if cache not in self._infusions:
            made = [i for entry, rows in concept for i in _infusions(self.bound[entry], rows, like)]
            self._infusions[cache] = made
        return self._infusions[cache]

    def _streams(self, extra: Mapping[str, Any], total: int) -> tuple[dict[Entry, slice], Rows]:
        """The rows of a forward that are the base stream, and those that are the concept stream."""
        base, concept = dict[Entry, slice](), Rows()
        for (index, uuid), rows in rows_of(extra, total, self.pictures, "Infusion Attention Patch"):
            if isinstance(uuid, BaseRow):
                base[index, uuid.original] = rows
            elif (index, uuid) in self.bound:
                concept.append(((index, uuid), rows))
        return base, concept


def rows_of(extra: Mapping[str, Any], total: int, pictures: int, node: str) -> Rows:
    """The conditionings of a forward of `total` rows, and the rows of each.

    Args:
        extra: the host's options of the forward.
        total: rows.
        pictures: in the batch.
        node: that asks.

    Raises:
        InfusionError: another patch added rows.
    """
    entries = list(zip(extra["cond_or_uncond"], extra["uuids"], strict=True))
    if total % len(entries) or total > len(entries) * pictures:
        raise InfusionError(
            f"another node changed the rows of cross-attention before {node} saw them ({total} rows for {len(entries)} "
            f"prompts and a batch of {pictures}); put {node} in front of that node, or leave one of them out"
        )
    size = total // len(entries)
    return [(entry, slice(i * size, (i + 1) * size)) for i, entry in enumerate(entries)]


def site_name(extra: Mapping[str, Any]) -> str:
    """The name of the cross-attention layer that calls a patch."""
    side, number = extra["block"]
    return f"{side}.{number}.{extra['block_index']}"


def _infusions(bound: Bound, rows: slice, like: Tensor) -> list[Infusion]:
    count = rows.stop - rows.start
    times = range(0, like.shape[1], bound.length)  # the host pads a short context by repeating it
    out = []
    for residual, strength, spans, bin_ in bound.concepts:
        repeated = [tuple(p + t for p in span) for t in times for span in spans]
        placed = residual.to(like.device, like.dtype)
        out.append(
            infuse(placed, range(rows.start, rows.stop), [repeated] * count, [bin_] * count, strength, like.device)
        )
    return out
