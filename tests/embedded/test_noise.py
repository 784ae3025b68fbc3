from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from infusion_core import noise


@pytest.fixture
def scheduler():
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )


def test_sigmas_are_those_of_diffusers(scheduler):
    theirs = noise.sigmas_from_alphas(scheduler.alphas_cumprod)
    torch.testing.assert_close(noise.scaled_linear_sigmas(), theirs, rtol=1e-4, atol=0)


def test_noised_input_and_v_target_are_those_of_diffusers(scheduler):
    z, eps = torch.randn(2, 3, 4, 4, 4).unbind()
    t = torch.tensor([3, 400, 990])
    sigma = noise.sigmas_from_alphas(scheduler.alphas_cumprod)[t]
    noised = z + sigma.reshape(-1, 1, 1, 1) * eps
    scaled = noised * noise.input_scale(sigma).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(scaled, scheduler.add_noise(z, eps, t))
    velocity = noise.target("v_prediction", z, eps, sigma)
    torch.testing.assert_close(velocity, scheduler.get_velocity(z, eps, t))
    torch.testing.assert_close(noise.as_epsilon("v_prediction", velocity, noised, sigma), eps, rtol=1e-3, atol=1e-4)
    assert noise.as_epsilon("epsilon", eps, noised, sigma) is eps


def test_bins_split_the_timesteps_evenly():
    sigmas = noise.scaled_linear_sigmas()
    bins = noise.bin_of(sigmas, sigmas, 4)
    assert bins.bincount().tolist() == [250] * 4
    assert bins[0] == 0
    assert bins[-1] == 3
    assert noise.bin_of(torch.tensor([99.0]), sigmas, 4).item() == 3
