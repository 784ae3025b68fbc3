"""Auxiliary losses of TinyWorld's training: what linear probes must be able to read off the networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from infusion_core.embedded.tinyworld.world import BODIES, COLOURS, Look


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


class Reading:
    """An auxiliary loss: a noun's state must tell the look that its caption gives it.

    A real model's text encoder has learned to read before (CLIP). Left to the denoising loss alone, this one was not
    rewarded before the UNet listens, the UNet not before there is something to hear, and both took thousands of steps.

    Args:
        width: of a state.
        device: that trains.
    """

    _COLOUR = (None, *COLOURS)

    def __init__(self, width: int, device: torch.device) -> None:
        self._sizes = [len(BODIES), *[len(self._COLOUR)] * 3]
        self.probe = nn.Linear(width, sum(self._sizes)).to(device)

    def errors(self, nouns: Tensor, looks: Sequence[Look]) -> Tensor:
        """Cross entropy of body, first, second and dot, added up, of states (K, D) with these looks, (K,)."""
        if not looks:
            return nouns.new_zeros(1)
        rows = [
            [tuple(BODIES).index(look.body), *map(self._COLOUR.index, (look.first, look.second, look.dot))]
            for look in looks
        ]
        wanted = torch.tensor(rows, device=nouns.device)
        said = self.probe(nouns).float().split(self._sizes, dim=1)
        entropies = [nn.functional.cross_entropy(s, w, reduction="none") for s, w in zip(said, wanted.T, strict=True)]
        return torch.stack(entropies).sum(dim=0)
