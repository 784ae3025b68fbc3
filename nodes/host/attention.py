"""The host's two hook points at a site: the inputs of cross-attention (`attn2_patch`), and what it has projected (the
`attn2` replacer).

What happens there is said by a pass, which travels in the host's ``transformer_options`` under `PASS` and reaches both
from there. A forward without one is the unpatched model's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...infusion_core.attention import split_heads
from ...infusion_core.errors import InfusionError
from ...infusion_core.parts import Layer, OfRows, Projected
from ...infusion_core.sites import Site
from .options import described

PASS = "infusion_pass"
Triple = tuple[Tensor, Tensor, Tensor]  # query, key, value


class Pass(Protocol):
    """What one forward pass does at every site."""

    @property
    def share(self) -> float:
        """Of what `projected` gives in what rows attend with; the rest is of their own query and key."""
        ...

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """The inputs of the three projections, (R, N, C), (R, L, D), (R, L, D), as the pass wants them."""
        ...

    def projected(self, query: Tensor, key: Tensor, value: Tensor, extra: Mapping[str, Any]) -> Triple:
        """What rows attend with, (R, N or L, heads * head width) each."""
        ...

    def attended(self, output: Tensor, query: Tensor, key: Tensor, extra: Mapping[str, Any]) -> Tensor:
        """What comes of it, (R, N, heads * head width), from the query and key that rows attended with."""
        ...


def patch_inputs(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Triple:
    """The attn2_patch."""
    state: Pass | None = extra.get(PASS)
    return (query, key, value) if state is None else state.inputs(query, key, value, extra)


class Replacer:
    """The attn2 replacer of one site; hands on to the replacer that was there before.

    Attributes:
        before: the replacer that acted at this site, or None.
        shadowed: the one for the whole block, which the host no longer asks since this one is for the site.
    """

    def __init__(self, before: Any = None, shadowed: Any = None) -> None:
        self.before, self.shadowed = before, shadowed

    def __deepcopy__(self, memo: object) -> Replacer:
        return self  # so that `check_replacers` knows what it shadows on a clone

    def add(self, *args: Any, **kwargs: Any) -> None:
        """What image-prompt nodes call on a replacer that they take for their own kind.

        Raises:
            InfusionError: always.
        """
        raise InfusionError(
            "the layout 'value' has replaced cross-attention where this node acts; put Infusion Attention Patch after "
            "it, or train with layout 'block'"
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        """Attend; projected (R, N or L, C) in, (R, N, C) out."""
        state: Pass | None = extra.get(PASS)
        if state is None:
            return attend(self.before, query, key, value, extra)
        own = query, key
        query, key, value = state.projected(query, key, value, extra)
        output = attend(self.before, query, key, value, extra)
        if state.share != 1:
            output = torch.lerp(attend(self.before, *own, value, extra), output, state.share)
        return state.attended(output, query, key, extra)


def attend(before: Any, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
    """What the replacer that was there before gives, or the host's own attention, (R, N, heads * head width)."""
    if before is not None:
        result: Tensor = before(query, key, value, extra)
        return result
    precision = extra.get("attn_precision")
    attended: Tensor = optimized_attention(
        query, key, value, extra["n_heads"], attn_precision=precision, transformer_options=extra
    )
    return attended


def layer_of(attention: Any, query: OfRows, key: OfRows) -> Layer:
    """A layer of the host's, whose projected queries and keys are known, as the core's."""

    def split(projection: Any) -> Projected:
        return lambda x: split_heads(projection(x), attention.heads)

    return Layer(query, key, split(attention.to_k), split(attention.to_v))


def layers_of(unet: Any) -> dict[str, Any]:
    """The host's cross-attention layers by the names of their sites."""
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    return {
        f"{side}.{number}.{depth}": block.attn2
        for side, blocks in sides.items()
        for number, modules in enumerate(blocks)
        for module in modules
        for depth, block in enumerate(getattr(module, "transformer_blocks", ()))
    }


def slots_of(site: Site) -> tuple[tuple[str, int, int], tuple[str, int]]:
    """Under which keys the host looks for the replacer of a site: the site's own, then its block's."""
    side, number, depth = site.name.split(".")
    return (side, int(number), int(depth)), (side, int(number))


def check_replacers(sites: Sequence[Site], transformer_options: Mapping[str, Any]) -> None:
    """Refuse to sample when another node took the slots of our replacers.

    Raises:
        InfusionError: names the replacer that is there instead.
    """
    installed = transformer_options.get("patches_replace", {}).get("attn2", {})
    for site in sites:
        own, block = slots_of(site)
        ours, shadowed = installed.get(own), installed.get(block)
        if not isinstance(ours, Replacer) or not _same(shadowed, ours.shadowed):
            other = shadowed if isinstance(ours, Replacer) else ours
            raise InfusionError(
                f"{described(other)} replaced cross-attention at {site.name} after Infusion Attention Patch; the "
                "layout 'value' must be the last to do so: put Infusion Attention Patch after that node, or train with "
                "layout 'block'"
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two replacers are one; objects may be copies, as some hosts copy them with the model."""
    return one is other or (not inspect.isroutine(one) and type(one) is type(other))
