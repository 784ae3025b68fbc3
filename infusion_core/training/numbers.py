"""The numbers of a residual while they are trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..noise import seeded
from ..residuals import ConceptResidual
from .objective import ParameterGroup


class Numbers:
    """Residuals, and in the layout ``parts`` their keys, as leaves that gradients reach.

    Args:
        start: where training starts.

    Attributes:
        strength: that they act at; whoever shares them shares it.
    """

    strength = 1.0

    def __init__(self, start: ConceptResidual) -> None:
        self._start = start
        whole = {name: tensor.detach().float() for name, tensor in start.tensors.items()}
        if start.layout == "parts":
            self._keys = {f"{name}.keys": _leaf(tensor.chunk(2, 2)[1]) for name, tensor in whole.items()}
            whole = {name: tensor.chunk(2, 2)[0] for name, tensor in whole.items()}
        else:
            self._keys = {}
        self._residuals = {name: _leaf(tensor) for name, tensor in whole.items()}

    def groups(self, key_rate: float) -> list[ParameterGroup]:
        """Residuals at the settings' learning rate, keys at `key_rate` times it and without weight decay."""
        groups = [ParameterGroup(self._residuals)]
        return [*groups, ParameterGroup(self._keys, key_rate, weight_decay=0.0)] if self._keys else groups

    def residual(self) -> ConceptResidual:
        """The concept as it is now; gradients flow through it into the leaves."""
        tensors = {
            name: torch.cat([tensor, self._keys[f"{name}.keys"]], 2) if self._keys else tensor
            for name, tensor in self._residuals.items()
        }
        return replace(self._start, tensors=tensors)


def with_random_keys(blank: ConceptResidual, scale: float, seed: int) -> ConceptResidual:
    """A residual of zeros in the layout ``parts`` with normal keys of a size; equal keys would learn equal parts."""
    generator, tensors = seeded(seed), {}
    for name, tensor in blank.tensors.items():
        residuals, keys = tensor.chunk(2, 2)
        tensors[name] = torch.cat([residuals, scale * torch.randn(keys.shape, generator=generator)], 2)
    return replace(blank, tensors=tensors)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()
