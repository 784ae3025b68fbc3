"""Auxiliary losses of TinyWorld's training, on features and attention of the UNet."""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from infusion_core.attention import Reader
from infusion_core.sites import Site

from .lesson import Nouns

NOUN_SHARE = 0.4  # of its attention that a cell inside a thing is to pay to the noun, mean over heads


class Whereabouts:
    """An auxiliary loss: every feature map must tell where its cells are, read by a linear probe.

    Only zero padding tells a convolutional network where it is. Left to itself it soon learns the distance to the edge
    ("center" or not) and for thousands of steps not the direction ("left" or "right").
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._features: list[Tensor] = []
        widths = {unet.down_blocks[0]: 64, unet.down_blocks[1]: 128, unet.mid_block: 128, unet.up_blocks[0]: 128}
        self.probes = nn.ModuleList(nn.Conv2d(width, 2, 1) for width in widths.values()).to(unet.device)
        for module in widths:
            module.register_forward_hook(self._keep)

    def clear(self) -> None:
        """Forget earlier passes."""
        self._features.clear()

    def errors(self) -> Tensor:
        """Squared error of the coordinates, each in [-1, 1], over the features of the last pass, (B,)."""
        errors = []
        for probe, feature in zip(self.probes, self._features, strict=True):
            side = torch.linspace(-1, 1, feature.shape[-1], device=feature.device)
            wanted = torch.stack(torch.meshgrid(side, side, indexing="ij"))
            errors.append((probe(feature) - wanted).square().mean(dim=(1, 2, 3)))
        self.clear()
        return torch.stack(errors).mean(dim=0)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._features.append(output[0] if isinstance(output, tuple) else output)


class Grounding:
    """An auxiliary loss: cells inside a thing must attend to its noun, others not, in every layer.

    The attention of Stable Diffusion does so, untaught, after hundreds of thousands of steps. At first a noun has one
    77th of it everywhere, so that neither its key nor its value has much of a gradient.
    """

    def __init__(self) -> None:
        self._shares: list[Tensor] = []

    def reader(self, nouns: Nouns) -> Reader:
        """A reader that keeps what `errors` needs, of a pass that begins; earlier passes are forgotten."""
        self._shares.clear()

        def keep(_site: Site, query: Tensor, key: Tensor) -> None:
            # The gradient of an index_select adds up in order, that of query[rows] does not: the same bits every time.
            queries, keys = query.index_select(0, nouns.rows), key.index_select(0, nouns.rows)
            scores = queries @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
            shares = scores.float().softmax(-1)  # (N, heads, cells, 77)
            at_noun = nouns.positions.reshape(-1, 1, 1, 1).expand(*shares.shape[:3], 1)
            self._shares.append(shares.gather(-1, at_noun)[..., 0].mean(dim=1))

        return keep

    def errors(self, covers: Tensor) -> Tensor:
        """Cross entropy of the shares of attention and those wanted, mean over heads, cells and layers, (N,).

        Args:
            covers: how much of each cell each noun's thing covers, (N, 16, 16).
        """
        errors = []
        for share in self._shares:
            side = math.isqrt(share.shape[1])
            wanted = NOUN_SHARE * nn.functional.adaptive_avg_pool2d(covers, side).flatten(1)
            share = share.clamp(1e-6, 1 - 1e-6)
            errors.append(-(wanted * share.log() + (1 - wanted) * (-share).log1p()).mean(dim=1))
        self._shares.clear()
        return torch.stack(errors).mean(dim=0)
