"""Cross-attention under a plan: one source of attention maps, any number of readers, residuals on the value.

Map replacement without maps: a row that takes another row's projected query and key has that row's attention map,
because softmax of the same inputs gives the same map. Nothing is materialised and every fused kernel works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .injection import Injection
from .parts import Layer, additions
from .sites import Site

Projection = Callable[[Tensor], Tensor]
QueryKey = tuple[Tensor, Tensor]  # projected query (R, heads, N, head width) and key (R, heads, L, head width)
Maps = Mapping[str, QueryKey]  # by site name; what attention maps are the softmax of


class Source(Protocol):
    """Where the attention maps of a pass come from."""

    def __call__(self, site: Site, own: Callable[[], QueryKey]) -> QueryKey:
        """The query and key that all rows attend with at a site.

        Args:
            site: where.
            own: projects the pass's own; not called where it is not needed.
        """
        ...


class Reader(Protocol):
    """What looks at attention maps; it reduces them at the site."""

    def __call__(self, site: Site, query: Tensor, key: Tensor) -> None:
        """Look at the query (R, heads, N, head width) and key (R, heads, L, head width) that rows attend with."""
        ...


class FeatureReader(Protocol):
    """What looks at what self-attention gives, in the transformer block of a site."""

    def __call__(self, site: Site, features: Tensor) -> None:
        """Look at features (R, N, C), after the output projection."""
        ...


@dataclass(frozen=True)
class OwnMaps:
    """Every row has its own attention map, as in the unpatched model."""

    def __call__(self, site: Site, own: Callable[[], QueryKey]) -> QueryKey:
        """The pass's own query and key."""
        return own()


@dataclass(frozen=True)
class MapsOfRows:
    """Row i of the batch has the attention map of row ``rows[i]``."""

    rows: Sequence[int]

    def __call__(self, site: Site, own: Callable[[], QueryKey]) -> QueryKey:
        """The pass's own query and key, rows exchanged."""
        query, key = own()
        return query[self.rows], key[self.rows]


@dataclass(frozen=True)
class SuppliedMaps:
    """The attention maps come from another pass, whose queries and keys were recorded, row by row.

    Attributes:
        maps: that were recorded; sites without any keep their own.
        rows: of the batch that attend with them; None for all, in which case the pass projects none of its own.
    """

    maps: Maps
    rows: slice | None = None

    def __call__(self, site: Site, own: Callable[[], QueryKey]) -> QueryKey:
        """The recorded query and key, and the pass's own where there are none."""
        supplied = self.maps.get(site.name)
        if supplied is None or self.rows is None:
            return supplied or own()
        mixed = [tensor.clone() for tensor in own()]
        for tensor, other in zip(mixed, supplied, strict=True):
            tensor[self.rows] = other
        return mixed[0], mixed[1]


@dataclass(frozen=True)
class Plan:
    """What one forward pass does at every cross-attention layer. The empty plan is the unpatched model.

    Attributes:
        source: of the attention maps.
        readers: of the query and key that the source gave.
        injections: residuals to add.
        share: of the source's maps in what rows attend with, in [0, 1]; the rest is of the pass's own.
        features: readers of the self-attention beside each of these layers.
    """

    source: Source = OwnMaps()
    readers: Sequence[Reader] = ()
    injections: Sequence[Injection] = ()
    share: float = 1.0
    features: Sequence[FeatureReader] = ()

    @property
    def empty(self) -> bool:
        """Whether the pass is the unpatched model's."""
        return not self.features and self.leaves_cross_attention

    @property
    def leaves_cross_attention(self) -> bool:
        """Whether cross-attention is the unpatched model's."""
        return isinstance(self.source, OwnMaps) and not self.readers and not self.injections

    def output(
        self, chosen: QueryKey, own: Callable[[], QueryKey], attend: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """What attention gives with the source's maps or, in part, with the pass's own.

        Maps are linear in the output: ``(s A + (1 - s) B) V = s A V + (1 - s) B V``, so none is made.

        Args:
            chosen: see `query_key`.
            own: projects the pass's own query and key.
            attend: attention with a query and a key, the value being given.
        """
        output = attend(*chosen)
        return output if self.share == 1 else torch.lerp(attend(*own()), output, self.share)

    def query_key(self, site: Site, own: Callable[[], QueryKey]) -> QueryKey:
        """What the source gives for a site, after every reader has seen it."""
        query, key = self.source(site, own)
        for reader in self.readers:
            reader(site, query, key)
        return query, key

    def value_input(self, site: Site, context: Tensor) -> Tensor:
        """The context that enters the value projection, (R, L, D): text states plus context-space residuals."""
        for injection in self.injections:
            if injection.space == "context":
                context = injection.add_to(context, site)
        return context

    def value(self, site: Site, value: Tensor) -> Tensor:
        """The projected value (R, L, heads * head width) plus value-space residuals."""
        for injection in self.injections:
            if injection.space == "value":
                value = injection.add_to(value, site)
        return value


def cross_attention(
    site: Site, hidden: Tensor, context: Tensor, to_q: Projection, to_k: Projection, to_v: Projection, heads: int,
    plan: Plan,
) -> Tensor:  # fmt: skip
    """Cross-attention at one site under a plan, before the output projection.

    Args:
        site: where.
        hidden: query inputs (R, N, C).
        context: text context (R, L, D).
        to_q, to_k, to_v: the layer's projections.
        heads: number of heads.
        plan: source of the maps, readers and residuals.

    Returns:
        (R, N, heads * head width): ``softmax(Q K^T / sqrt(d)) (V + residual)``, eq. 7, and what `parts` add.
    """

    def own() -> QueryKey:
        return split_heads(to_q(hidden), heads), split_heads(to_k(context), heads)

    query, key = plan.query_key(site, own)
    value = split_heads(plan.value(site, to_v(plan.value_input(site, context))), heads)
    out = plan.output((query, key), own, lambda q, k: F.scaled_dot_product_attention(q, k, value))
    layer = Layer(
        query.__getitem__, key.__getitem__, lambda x: split_heads(to_k(x), heads), lambda x: split_heads(to_v(x), heads)
    )
    for rows, added in additions(plan.injections, site, layer):
        out = out.index_add(0, rows, added)
    return join_heads(out)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(R, length, heads * head width) as (R, heads, length, head width)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(R, heads, length, head width) as (R, length, heads * head width)."""
    return x.transpose(1, 2).flatten(2)
