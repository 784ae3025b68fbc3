"""The two streams. Map replacement without maps: the concept stream attends with the base stream's queries and keys.

Concept rows take the projected queries and keys of base rows in the same batch, or those that a base pass recorded.
Softmax of the same inputs gives the same attention map, so nothing is materialised and every fused kernel works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from .residuals import Infusion
from .sites import Site

Projection = Callable[[Tensor], Tensor]
Maps = dict[str, tuple[Tensor, Tensor]]  # by site name: query and key, each (R, heads, length, head width)


@dataclass(frozen=True)
class Plan:
    """What one forward pass does at every cross-attention layer. The empty plan is the unpatched model.

    Attributes:
        record: filled with the queries and keys of the rows in `recorded_rows`; None to record nothing.
        recorded_rows: rows of the batch to record, in the order the supplied pass has them.
        supply: queries and keys that replace the pass's own, for all its rows; None to use its own.
        map_rows: for each row of the batch, the row whose attention map it has; None for its own.
        infusions: residuals to add.
    """

    record: Maps | None = None
    recorded_rows: slice = field(default_factory=lambda: slice(None))
    supply: Mapping[str, tuple[Tensor, Tensor]] | None = None
    infusions: Sequence[Infusion] = ()
    map_rows: Sequence[int] | None = None

    @property
    def empty(self) -> bool:
        """Whether the pass is the unpatched model's."""
        return self.record is None and self.supply is None and self.map_rows is None and not self.infusions


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
        plan: streams and residuals.

    Returns:
        (R, N, heads * head width): ``softmax(Q K^T / sqrt(d)) (V + residual)``, eq. 7.
    """
    if plan.supply is not None:
        query, key = plan.supply[site.name]
    else:
        query, key = _split(to_q(hidden), heads), _split(to_k(context), heads)
        if plan.map_rows is not None:
            query, key = query[plan.map_rows], key[plan.map_rows]
    if plan.record is not None:
        plan.record[site.name] = (query[plan.recorded_rows], key[plan.recorded_rows])
    value = to_v(value_context(site, context, plan.infusions))
    for infusion in plan.infusions:
        if infusion.in_value_space:
            value = infusion.add_to(value, site)
    out = F.scaled_dot_product_attention(query, key, _split(value, heads))  # (R, heads, N, head width)
    joined: Tensor = out.transpose(1, 2).flatten(2)
    return joined


def value_context(site: Site, context: Tensor, infusions: Sequence[Infusion]) -> Tensor:
    """The context that enters the value projection, (R, L, D): text states plus context-space residuals."""
    for infusion in infusions:
        if not infusion.in_value_space:
            context = infusion.add_to(context, site)
    return context


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
