"""What DreamBlend does at the sites of one forward: it looks at the rows of the positive conditionings, or gives them
other queries and keys to attend with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...infusion_core.attention import join_heads, split_heads
from ...infusion_core.errors import InfusionError
from ...infusion_core.sites import Site
from .attention import attend, slots_of
from .rows import BaseRow, batch_of

BLEND = "dreamblend"  # in the transformer options: the pass that runs; also the key of the wrappers
NODE = "DreamBlend Guidance"
OTHER_ROWS = (
    "the late model's sampling runs a part of the prompt that the early one's left out; give both MODELs the same "
    "nodes and no step cache"
)
AtSite = Callable[[Site, int, UUID, Tensor, Tensor], tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class BlendPass:
    """What happens at the sites of one forward: something with the rows of the positive conditionings.

    Attributes:
        numbers: of the positive conditionings in their list, by uuid.
        pictures: in the batch.
        at: for a site, a conditioning's number and uuid, and its rows' query (R, heads, N, head width) and key (R,
            heads, L, head width): the query and key they attend with instead, or None.
        share: of what `at` gives; the rest is the rows' own.
        lengths: own tokens of each positive conditioning; the host repeats shorter texts beside longer ones.
    """

    numbers: Mapping[UUID, int]
    pictures: int
    at: AtSite
    share: float
    lengths: Mapping[int, int]


@dataclass(frozen=True)
class SiteHook:
    """The attn2 replacer of one site for one forward; the replacer that is there attends as before."""

    site: Site
    state: BlendPass
    before: Any

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        state, heads = self.state, extra["n_heads"]
        batch = batch_of(extra, key, state.pictures, NODE)
        mixed_query, mixed_key = query, key
        for index, (_, uuid) in enumerate(batch.entries):
            number = state.numbers.get(uuid.original if isinstance(uuid, BaseRow) else uuid)
            if number is None:
                continue
            own_query, own_key = (split_heads(batch.part(x, index).flatten(0, 1), heads) for x in (query, key))
            length = state.lengths[number]
            repeats = own_key.shape[2] // length if own_key.shape[2] % length == 0 else 1
            given = state.at(self.site, number, uuid, own_query, own_key[:, :, : own_key.shape[2] // repeats])
            if given is None:
                continue
            if mixed_query is query:
                mixed_query, mixed_key = query.clone(), key.clone()
            for whole, part in ((mixed_query, given[0]), (mixed_key, given[1].repeat(1, 1, repeats, 1))):
                rows = batch.part(whole, index)
                rows.copy_(join_heads(part).reshape(rows.shape))
        output = attend(self.before, mixed_query, mixed_key, value, extra)
        if mixed_query is query or state.share == 1:
            return output
        return torch.lerp(attend(self.before, query, key, value, extra), output, state.share)


class SiteHooks:
    """The wrapper that puts hooks at the sites of a forward; innermost, so that it sees every replacer there is."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites

    def __deepcopy__(self, memo: object) -> SiteHooks:
        return self

    def network(
        self, executor: Any, x: Any, timesteps: Any, context: Any, y: Any, control: Any,
        transformer_options: dict[str, Any], *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One forward of the network."""
        state: BlendPass | None = transformer_options.get(BLEND)
        if state is not None:
            replace = transformer_options.get("patches_replace", {})
            there = dict(replace.get("attn2", {}))
            for site in self.sites:
                own, block = slots_of(site)
                there[own] = SiteHook(site, state, there.get(own, there.get(block)))
            transformer_options = {**transformer_options, "patches_replace": {**replace, "attn2": there}}
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)


def pass_of(guider: Any, pictures: int, at: Any, share: float = 1.0) -> BlendPass:
    """A pass over the rows of the guider's positive conditionings.

    Raises:
        InfusionError: it has none.
    """
    positive = guider.conds.get("positive")
    if not positive:
        raise InfusionError(f"{NODE} needs a positive conditioning, and {type(guider).__name__} has none")
    numbers = {cond["uuid"]: index for index, cond in enumerate(positive)}
    lengths = {i: cond["model_conds"]["c_crossattn"].cond.shape[1] for i, cond in enumerate(positive)}
    return BlendPass(numbers, pictures, at, share, lengths)
