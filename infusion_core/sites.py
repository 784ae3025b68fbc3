"""Sites: the cross-attention layers of a UNet, under names that every host shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InfusionError


@dataclass(frozen=True)
class Site:
    """One cross-attention layer (`attn2`).

    Attributes:
        name: ``input.4.0``: side of the UNet, number of the block there, index of the transformer block.
        block: the UNet block that holds it: ``down.1``, ``mid``, ``up.2``.
        value_width: numbers in one token's value, all heads together.
    """

    name: str
    block: str
    value_width: int


def under(sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    """The sites that bear one of the names or are below one.

    Args:
        sites: of a model.
        names: of blocks or sites or their beginnings, such as ``up``, ``up.1`` or ``output.4``; empty for all sites.

    Raises:
        InfusionError: the model has no such block or site.
    """

    def is_under(site: Site, name: str) -> bool:
        return any(own == name or own.startswith(f"{name}.") for own in (site.block, site.name))

    for name in names:
        if not any(is_under(site, name) for site in sites):
            known = ", ".join(sorted({site.block for site in sites}))
            raise InfusionError(f"this model has no block or layer {name!r}; its blocks are: {known}")
    return [site for site in sites if not names or any(is_under(site, name) for name in names)]


def site_from_module(path: str, layers_per_block: int, value_width: int) -> Site:
    """The site of a diffusers UNet module.

    Args:
        path: of the transformer block, e.g. ``down_blocks.1.attentions.0.transformer_blocks.0``.
        layers_per_block: residual blocks per level of the down half; the up half has one more.
        value_width: output width of the layer's value projection.

    Raises:
        ValueError: the path is not one of a cross-attention UNet.
    """
    parts = path.split(".")
    try:
        if parts[0] == "mid_block":
            return Site(f"middle.0.{parts[4]}", "mid", value_width)
        level, attention, depth = int(parts[1]), int(parts[3]), parts[5]
        number = level * (layers_per_block + 1) + attention
        if parts[0] == "down_blocks":
            return Site(f"input.{number + 1}.{depth}", f"down.{level}", value_width)
        if parts[0] == "up_blocks":
            return Site(f"output.{number}.{depth}", f"up.{level}", value_width)
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a cross-attention module of a UNet: {path}") from error
    raise ValueError(f"not a cross-attention module of a UNet: {path}")
