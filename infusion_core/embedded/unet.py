"""A diffusers UNet as a `Denoiser`. Processors are put in for one pass and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention import Plan, cross_attention
from ..checkpointing import checkpointed
from ..denoiser import Conditioning
from ..errors import InfusionError
from ..noise import Prediction, input_scale, timestep_of
from ..residuals import Base, architecture_name
from ..sites import Site, site_from_module

CHECKPOINTED = ("BasicTransformerBlock", "ResnetBlock2D")  # diffusers' classes


@dataclass(frozen=True)
class SiteProcessor:
    """Cross-attention of one site under one plan, in place of diffusers' own processor."""

    site: Site
    plan: Plan

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Attend; (R, N, C) in and out."""
        out = cross_attention(
            self.site, hidden_states, encoder_hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.heads, self.plan
        )
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


class UNetDenoiser:
    """A frozen `UNet2DConditionModel`.

    Args:
        unet: a diffusers UNet2DConditionModel; its parameters are frozen here.
        sigmas: training noise levels, ascending, (T,).
        prediction: what the network says.

    Attributes:
        checkpointing: keep less for backward and compute more, see `checkpointed`.

    Raises:
        InfusionError: the network has no cross-attention.
    """

    def __init__(self, unet: Any, sigmas: Tensor, prediction: Prediction) -> None:
        self.unet = unet.requires_grad_(False).eval()
        self.prediction = prediction
        self.sigmas = sigmas
        self.checkpointing = False
        self._blocks = [module for module in unet.modules() if type(module).__name__ in CHECKPOINTED]
        self._attention = {
            name.removesuffix(".attn2"): module for name, module in unet.named_modules() if name.endswith(".attn2")
        }
        if not self._attention:
            raise InfusionError("this UNet has no cross-attention; use a Stable Diffusion 1.x, 2.x or XL model")
        layers = unet.config["layers_per_block"]
        if not isinstance(layers, int):
            raise InfusionError("UNets with another number of layers at each level are not supported")
        found = {path: site_from_module(path, layers, attn.to_v.out_features) for path, attn in self._attention.items()}
        order = {"d": 0, "m": 1, "u": 2}
        self._sites = dict(sorted(found.items(), key=lambda item: order[item[0][0]]))
        width = unet.config["cross_attention_dim"]
        self.base = Base(architecture_name(width), width, prediction, tuple(self._sites.values()))

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        device: torch.device = self.unet.device
        return device

    def predict(self, noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        """The network's own output; the nearest training timestep stands for `sigma`."""
        scale = input_scale(sigma).reshape(-1, 1, 1, 1).to(noised)
        timestep = timestep_of(sigma, self.sigmas.to(sigma.device))
        return self.forward(noised * scale, timestep, conditioning, plan)

    def forward(self, scaled: Tensor, timestep: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        """The network itself: a variance-preserving latent (R, C, H, W) and timesteps () or (R,) in, output out."""
        blocks = self._blocks if self.checkpointing else ()
        with self._under(plan), checkpointed(blocks, partial(self._under, plan)):
            out: Tensor = self.unet(
                scaled.to(self.unet.dtype),
                timestep,
                encoder_hidden_states=conditioning.context,
                added_cond_kwargs=dict(conditioning.extras) or None,
            ).sample
        return out

    @contextmanager
    def _under(self, plan: Plan) -> Iterator[None]:
        if plan.empty:
            yield
            return
        before = {path: attn.processor for path, attn in self._attention.items()}
        watched = []
        try:
            for path, attn in self._attention.items():
                site = self._sites[path]
                if not plan.leaves_cross_attention:
                    attn.processor = SiteProcessor(site, plan)
                if plan.features:
                    self_attention = self.unet.get_submodule(f"{path}.attn1")
                    watched.append(self_attention.register_forward_hook(partial(_watched, plan, site)))
            yield
        finally:
            for path, attn in self._attention.items():
                attn.processor = before[path]
            for handle in watched:
                handle.remove()


def _watched(plan: Plan, site: Site, _module: Any, _given: Any, output: Tensor) -> None:
    for reader in plan.features:
        reader(site, output)
