"""LoRA (arXiv 2106.09685): small matrices beside frozen layers, in any host, put in and taken out by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from .errors import InfusionError
from .noise import seeded

DOWN, UP = "lora_down.weight", "lora_up.weight"


class LoraSet:
    """Low-rank changes of some layers: ``W x`` becomes ``W x + alpha / rank * up down x``.

    The matrices are in float32 and are computed with in the precision of a layer's input. A fresh set changes nothing,
    since `up` is zero. The layers' own weights are never touched.

    Args:
        layers: linear layers and pointwise convolutions, by the names that a file gives them.
        rank: columns of `up`, rows of `down`.
        alpha: of the whole change; None for the rank.
        seed: of the random numbers that `down` starts with, uniform as in the paper's code.

    Raises:
        InfusionError: no layers, one of another kind, or a rank below 1.
    """

    def __init__(self, layers: Mapping[str, nn.Module], rank: int, alpha: float | None = None, seed: int = 0) -> None:
        if not layers:
            raise InfusionError("no layer of this model can take a LoRA; use a Stable Diffusion 1.x, 2.x or XL model")
        if rank < 1:
            raise InfusionError(f"the rank must be at least 1, got {rank}")
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self._layers = dict(sorted(layers.items()))  # so that every host draws the same numbers for the same layer
        self._on = True
        self.tensors: dict[str, Tensor] = {}
        generator = seeded(seed)
        for name, layer in self._layers.items():
            outside, inside, kernel = _shape(name, layer)
            weight: Any = layer.weight
            bound = inside**-0.5  # of Kaiming's uniform distribution with a = sqrt(5)
            down = (torch.rand(rank, inside, generator=generator) * 2 - 1) * bound
            self.tensors[f"{name}.{DOWN}"] = down.reshape(rank, inside, *kernel).to(weight.device).requires_grad_()
            up = torch.zeros(outside, rank, *kernel, device=weight.device)
            self.tensors[f"{name}.{UP}"] = up.requires_grad_()

    @property
    def scale(self) -> float:
        """Factor of every change."""
        return self.alpha / self.rank

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The layers compute with their changes."""
        handles: list[RemovableHandle] = []
        try:
            handles += [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The layers compute as if nothing were installed: the base model, whose weights are the same memory."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the matrices of another set, or of a file, with the same layers and rank; alphas are not looked at.

        Raises:
            InfusionError: they are of others.
        """
        given = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
        if {k: v.shape for k, v in given.items()} != {k: v.shape for k, v in self.tensors.items()}:
            raise InfusionError("the LoRA to go on with has other layers or another rank; set the same")
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def _hook(self, name: str) -> Any:
        down, up = self.tensors[f"{name}.{DOWN}"], self.tensors[f"{name}.{UP}"]

        def add(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._on:
                return output
            (x,) = given
            narrow, wide = down.to(x), up.to(x)  # a layer's weights may lie elsewhere than it computes
            if narrow.dim() == 2:
                return output + F.linear(F.linear(x, narrow), wide * self.scale)
            return output + F.conv2d(F.conv2d(x, narrow), wide * self.scale)

        return add


def _shape(name: str, layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """Numbers out and in, and the kernel.

    Raises:
        InfusionError: the layer is of another kind.
    """
    weight = getattr(layer, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if len(shape) == 2:
        return shape[0], shape[1], ()
    if len(shape) == 4 and shape[2:] == (1, 1):
        return shape[0], shape[1], (1, 1)
    raise InfusionError(f"the layer {name} cannot take a LoRA; it is neither linear nor a pointwise convolution")
