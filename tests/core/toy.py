"""A three-site network small enough to follow by hand, as a `Denoiser`. Its attention is sharp, so that maps matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infusion_core.attention import Plan, cross_attention
from infusion_core.concepts import LoadedConcept
from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.noise import scaled_linear_sigmas
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.sites import Site

WIDTH, CHANNELS, HEADS, LENGTH = 8, 6, 2, 5
PARTS = 2
SHARPNESS = 5.0


class ToyDenoiser(nn.Module):
    """Latents (R, 4, 2, 2) through three residual cross-attention layers."""

    prediction = "epsilon"
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sites = tuple(
            Site(name, block, CHANNELS)
            for name, block in (("input.1.0", "down.0"), ("input.2.0", "down.0"), ("output.0.0", "up.0"))
        )
        self.base = Base("toy", WIDTH, "epsilon", sites)
        self.sigmas = scaled_linear_sigmas()
        self.enter, self.leave = nn.Linear(4, CHANNELS), nn.Linear(CHANNELS, 4)
        self.q = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in sites)
        self.k = nn.ModuleList(nn.Linear(WIDTH, CHANNELS, bias=False) for _ in sites)
        self.v = nn.ModuleList(nn.Linear(WIDTH, CHANNELS, bias=False) for _ in sites)
        self.requires_grad_(False)
        for projection in (*self.q, *self.v):
            projection.weight *= SHARPNESS

    def predict(self, noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        scaled = noised / (sigma.reshape(-1, 1, 1, 1).square() + 1).sqrt()
        hidden = self.enter(scaled.flatten(2).transpose(1, 2))
        for site, q, k, v in zip(self.base.sites, self.q, self.k, self.v, strict=True):
            hidden = hidden + cross_attention(site, hidden, conditioning.context, q, k, v, HEADS, plan)
        return self.leave(hidden).transpose(1, 2).reshape(noised.shape)


def prompts(count: int = 3, spans: tuple[tuple[int, ...], ...] = ((2,),)) -> list[EncodedPrompt]:
    """Random prompts whose word stands at `spans`."""
    generator = torch.Generator().manual_seed(1)
    return [
        EncodedPrompt(Conditioning(torch.randn(1, LENGTH, WIDTH, generator=generator)), (spans,)) for _ in range(count)
    ]


def latents(count: int = 2) -> Tensor:
    """Random latents."""
    return torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(2))


def concept(
    denoiser: ToyDenoiser, layout: str = "block", bins: int = 1, seed: int = 3, size: float = 1.0
) -> ConceptResidual:
    """A residual of random numbers."""
    residual = zero_residual(denoiser.base, "cat", layout, bins, parts=PARTS)
    generator = torch.Generator().manual_seed(seed)
    for tensor in residual.tensors.values():
        tensor.normal_(0, size, generator=generator)
    return residual


def loaded(residual: ConceptResidual, strength: float = 1.0, **options: object) -> LoadedConcept:
    """A concept at a strength."""
    return LoadedConcept("tom", residual, strength, **options)
