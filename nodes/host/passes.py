"""One forward pass of the host's UNet under Infusion: which rows supply queries, which receive residuals.

The state of a pass travels in the host's ``transformer_options`` (key ``infusion``) and reaches the patches from
there. A pass without it is the unpatched model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.residuals import ConceptResidual, Infusion, infuse
from ...infusion_core.sites import Site
from ...infusion_core.tokens import Span

KEY = "infusion"
Entry = tuple[int, object]  # one conditioning of a pass: index of its list, and its uuid


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
        bound: the conditionings whose rows are the concept stream (or, when recording, the base stream).
        queries: query inputs by site and conditioning, (rows, N, C): filled when recording, supplied otherwise.
        recording: this is the base pass.
        infusing: residuals are added.
    """

    sites: Mapping[str, Site]
    bound: Mapping[Entry, Bound]
    queries: dict[tuple[str, Entry], Tensor] | None = None
    recording: bool = False
    infusing: bool = False
    _infusions: dict[tuple[Any, ...], list[Infusion]] = field(default_factory=dict)

    def context_inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The three inputs of cross-attention, (R, N, C), (R, L, D), (R, L, D), as this pass wants them."""
        site = self.sites[site_name(extra)]
        groups = self._groups(extra, len(query))
        if self.recording and self.queries is not None:
            for entry, rows in groups:
                self.queries[site.name, entry] = query[rows].clone()
            return query, key, value
        if self.queries is not None:
            query = self._supplied(site, query, groups)
        for infusion in self._residuals(groups, value):
            if not infusion.in_value_space:
                value = infusion.add_to(value, site)
        return query, key, value

    def projected_value(self, value: Tensor, extra: Mapping[str, Any]) -> Tensor:
        """The projected value (R, L, heads * head width) with value-space residuals added."""
        site = self.sites[site_name(extra)]
        for infusion in self._residuals(self._groups(extra, len(value)), value):
            if infusion.in_value_space:
                value = infusion.add_to(value, site)
        return value

    def _supplied(self, site: Site, query: Tensor, groups: Sequence[tuple[Entry, slice]]) -> Tensor:
        assert self.queries is not None
        query = query.clone()
        for entry, rows in groups:
            query[rows] = self.queries[site.name, entry].to(query)
        return query

    def _residuals(self, groups: Sequence[tuple[Entry, slice]], like: Tensor) -> list[Infusion]:
        """Infusions for the rows of one forward, made once per batch layout."""
        if not self.infusing or self.recording or not groups:
            return []
        length = like.shape[1]
        cache = (tuple((entry, rows.start, rows.stop) for entry, rows in groups), length, like.dtype, like.device)
        if cache not in self._infusions:
            self._infusions[cache] = [i for entry, rows in groups for i in _infusions(self.bound[entry], rows, like)]
        return self._infusions[cache]

    def _groups(self, extra: Mapping[str, Any], total: int) -> list[tuple[Entry, slice]]:
        """The bound conditionings of a forward and their rows."""
        return [(entry, rows) for entry, rows in rows_of(extra, total) if entry in self.bound]


def rows_of(extra: Mapping[str, Any], total: int) -> list[tuple[Entry, slice]]:
    """The conditionings of a forward of `total` rows, and the rows of each.

    Raises:
        InfusionError: another patch changed the number of rows.
    """
    entries = list(zip(extra["cond_or_uncond"], extra["uuids"], strict=True))
    if total % len(entries):
        raise InfusionError(
            f"another patch changed the rows of cross-attention ({total} rows for {len(entries)} prompts) before "
            "Infusion saw them; put Infusion Attention Patch after that node"
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
