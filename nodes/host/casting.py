"""Layers whose weights the host copies for every pass: stored in fewer bits, patched on the way, or kept off the card.

Autograd would keep every such copy until the way back: a whole model more in memory, and, where the host uses the
memory of one copy for the next, other weights than the pass had. Here the way back asks the host for them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)  # that a UNet is made of


def layers_in(network: nn.Module) -> list[Any]:
    """The layers of a network whose weights the host may cast."""
    return [m for m in network.modules() if isinstance(m, LAYERS) and isinstance(m, comfy.ops.CastWeightBiasOp)]


@contextmanager
def cast_again(layers: Iterable[Any]) -> Iterator[None]:
    """Within the block, layers whose weights the host casts keep none of the copies for backward.

    Args:
        layers: of frozen weights.
    """
    cast = [layer for layer in layers if _is_cast(layer)]
    before = [layer.__dict__.get("forward") for layer in cast]
    try:
        for layer in cast:
            layer.forward = partial(_run, layer, layer.forward)
        yield
    finally:
        for layer, own in zip(cast, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own


def _is_cast(layer: Any) -> bool:
    return bool(layer.comfy_cast_weights or layer.weight_function or layer.bias_function)


def _run(layer: Any, forward: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and given.requires_grad):
        return forward(given)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(given, layer.num_groups, *_weights(layer, given), layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(given, layer.normalized_shape, *_weights(layer, given), layer.eps)
    out: Tensor = _Frozen.apply(given, layer, forward)  # type: ignore[no-untyped-call]
    return out


def _weights(layer: Any, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias as the host gives them, in memory of their own."""
    found: tuple[Tensor | None, Tensor | None] = (None, None)
    if layer.weight is not None:
        found = comfy.ops.cast_bias_weight(layer, like)
    return found


class _Frozen(torch.autograd.Function):
    """A linear layer or a convolution whose weights get no gradient and are not kept."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, layer: Any, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.layer, ctx.shape = layer, given.shape
        return forward(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        layer, (gradient,) = ctx.layer, gradients
        weight, _ = comfy.ops.cast_bias_weight(layer, gradient)
        if isinstance(layer, nn.Linear):
            return gradient @ weight, None, None
        way = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, weight, gradient, *way), None, None  # type: ignore[no-untyped-call]
