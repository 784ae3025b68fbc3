"""Sites: the cross-attention layers of a UNet, under names that every host shares."""

from __future__ import annotations

from dataclasses import dataclass


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
