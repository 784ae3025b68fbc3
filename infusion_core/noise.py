"""Noise levels. Inside the core a noised latent is ``x = z + sigma * eps``; timesteps exist only at a host's edge."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

Prediction = Literal["epsilon", "v_prediction"]


SEEDS = 2**64  # as many seeds there are


def seeded(seed: int) -> Generator:
    """A generator of random numbers; seeds start again at 0 after the last one."""
    return Generator().manual_seed(seed % SEEDS)


def scaled_linear_sigmas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Stable Diffusion's training noise levels, ascending, (steps,)."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return sigmas_from_alphas(torch.cumprod(1 - betas, 0))


def sigmas_from_alphas(alphas_cumprod: Tensor) -> Tensor:
    """Noise levels of a variance-preserving schedule, (steps,)."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()


def uniform_times(count: int, steps: int, generator: Generator) -> Tensor:
    """Training timesteps (count,), each uniform and independent."""
    return torch.randint(steps, (count,), generator=generator)


def stratified_times(count: int, steps: int, generator: Generator) -> Tensor:
    """Training timesteps (count,), one per equal slice: still uniform, with less variance from step to step."""
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count * steps
    return spread.long().clamp(max=steps - 1)  # rounding may reach the end of the last slice


def input_scale(sigma: Tensor) -> Tensor:
    """What a noised latent is multiplied with before it enters the network: ``1 / sqrt(sigma^2 + 1)``."""
    return (sigma.square() + 1).rsqrt()


def target(prediction: Prediction, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What the network is trained to say, (B, C, H, W); `sigma` is (B,).

    ``epsilon``: the noise. ``v_prediction``: ``(noise - sigma * latent) / sqrt(sigma^2 + 1)``.
    """
    if prediction == "epsilon":
        return noise
    sigma = _spread(sigma, latent)
    return (noise - sigma * latent) * input_scale(sigma)


def as_epsilon(prediction: Prediction, output: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a network's output says is in `noised` (B, C, H, W); `sigma` is (B,)."""
    if prediction == "epsilon":
        return output
    sigma = _spread(sigma, noised)
    scale = input_scale(sigma)
    return output * scale + noised * sigma * scale.square()


def bin_of(sigma: Tensor, sigmas: Tensor, bins: int) -> Tensor:
    """The timestep bin of each noise level, long (B,); bins split the training timesteps evenly, bin 0 the lowest."""
    return timestep_of(sigma, sigmas) * bins // len(sigmas)


def share_done(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """The share of a sampling run that is over where it comes to each noise level, (B,): 0 at the highest one."""
    return 1 - (timestep_of(sigma, sigmas) + 1) / len(sigmas)


def timestep_of(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """The training timestep whose noise level is nearest, long (B,): one that a host has rounded is the same."""
    return torch.searchsorted((sigmas[1:] + sigmas[:-1]) / 2, sigma.to(sigmas))


def _spread(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (like.dim() - 1)).to(like)
