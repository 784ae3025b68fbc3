"""Noise levels against Stable Diffusion's schedule and the v-prediction paper's formulas, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infusion_core import noise


def kept() -> np.ndarray:
    """The share of the picture's variance left at each of 1000 timesteps, Stable Diffusion's scaled-linear schedule."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def test_sigmas_are_noise_over_signal():
    alphas = kept()
    expected = np.sqrt((1 - alphas) / alphas)
    np.testing.assert_allclose(noise.scaled_linear_sigmas().numpy(), expected, rtol=1e-5)
    assert expected[-1] == pytest.approx(14.6146, abs=1e-3)  # the sigma_max that samplers know
    given = noise.sigmas_from_alphas(torch.tensor([0.5, 0.2]))
    assert given.tolist() == pytest.approx([1.0, 2.0])
    shorter = noise.scaled_linear_sigmas(10, 0.1, 0.2)
    betas = np.linspace(0.1**0.5, 0.2**0.5, 10) ** 2
    alphas = np.cumprod(1 - betas)
    np.testing.assert_allclose(shorter.numpy(), np.sqrt((1 - alphas) / alphas), rtol=1e-5)


def test_noised_input_and_targets_are_those_of_the_papers():
    z, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = [3, 400, 990]
    sigma = noise.scaled_linear_sigmas()[t]
    noised = z + sigma.reshape(-1, 1, 1, 1) * eps
    alphas = torch.tensor(kept()[t], dtype=torch.float32).reshape(-1, 1, 1, 1)
    signal, share = alphas.sqrt(), (1 - alphas).sqrt()
    scaled = noised * noise.input_scale(sigma).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scaled, signal * z + share * eps, rtol=1e-4, atol=1e-5)  # Ho et al. 2020, eq. 4
    velocity = noise.target("v_prediction", z, eps, sigma)
    torch.testing.assert_close(velocity, signal * eps - share * z, rtol=1e-4, atol=1e-5)  # Salimans and Ho 2022
    torch.testing.assert_close(noise.as_epsilon("v_prediction", velocity, noised, sigma), eps, rtol=1e-3, atol=1e-4)
    assert noise.target("epsilon", z, eps, sigma) is eps
    assert noise.as_epsilon("epsilon", eps, noised, sigma) is eps


def test_bins_split_the_timesteps_evenly():
    sigmas = noise.scaled_linear_sigmas()
    bins = noise.bin_of(sigmas, sigmas, 4)
    assert bins.tolist() == [t * 4 // 1000 for t in range(1000)]
    assert noise.bin_of(torch.tensor([99.0]), sigmas, 4).item() == 3
    assert noise.bin_of(torch.tensor([99.0], dtype=torch.float64), sigmas, 1000).item() == 999
    between = sigmas[249] + (sigmas[250] - sigmas[249]) * torch.tensor([0.4, 0.6])
    assert noise.bin_of(between, sigmas, 4).tolist() == [0, 1]  # the nearer training level counts
    for rounded in (sigmas * (1 - 1e-6), sigmas * (1 + 1e-6)):
        assert torch.equal(noise.bin_of(rounded, sigmas, 4), bins)


def test_the_share_of_a_run_is_counted_from_the_highest_noise():
    sigmas = noise.scaled_linear_sigmas()
    shares = noise.share_done(sigmas, sigmas)
    torch.testing.assert_close(shares, 1 - torch.arange(1, 1001) / 1000)
    assert noise.share_done(torch.tensor([99.0]), sigmas).item() == 0


def test_levels_in_double_precision_leave_the_latents_theirs():
    z, eps, sigma = torch.ones(2, 4, 2, 2), torch.ones(2, 4, 2, 2), torch.tensor([1.0, 3.0], dtype=torch.float64)
    velocity = noise.target("v_prediction", z, eps, sigma)
    assert velocity.dtype == noise.as_epsilon("v_prediction", velocity, z, sigma).dtype == torch.float32
    assert velocity[:, 0, 0, 0].tolist() == pytest.approx([0.0, -2 / 10**0.5])
