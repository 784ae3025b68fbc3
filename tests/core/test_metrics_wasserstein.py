from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from infusion_core.errors import InfusionError
from infusion_core.metrics.wasserstein import (
    Gaussian,
    fit_gaussian,
    latent_wasserstein,
    ledoit_wolf,
    split_half,
    squared_wasserstein,
)


def samples(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Correlated samples around a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mix + torch.randn(width, generator=generator)


def diagonal(mean: list[float], variances: list[float]) -> Gaussian:
    return Gaussian(torch.tensor(mean).double(), torch.diag(torch.tensor(variances).double().sqrt()))


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """Eq. 5 with the whole matrices and scipy's square root."""
    one, other = (covariance(g) for g in (a, b))
    root = sqrtm(one)
    cross = sqrtm(root @ other @ root)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(one + other - 2 * cross.real))


def covariance(gaussian: Gaussian) -> np.ndarray:
    factor = gaussian.factor.numpy()
    return factor.T @ factor + gaussian.isotropic * np.eye(factor.shape[1])


def test_diagonal_covariances_have_the_closed_form():
    a, b = diagonal([1, 2, 3], [4, 1, 9]), diagonal([1, 0, 3], [1, 1, 25])
    assert squared_wasserstein(a, b) == pytest.approx(4 + (2 - 1) ** 2 + 0 + (3 - 5) ** 2)
    assert squared_wasserstein(b, a) == pytest.approx(squared_wasserstein(a, b))


def test_equal_covariances_leave_the_distance_of_the_means():
    a = fit_gaussian(samples(40, 12))
    moved = Gaussian(a.mean + 0.5, a.factor, a.isotropic)
    assert squared_wasserstein(a, moved) == pytest.approx(12 * 0.25)
    assert squared_wasserstein(a, a) == pytest.approx(0, abs=1e-9)


def test_scaling_about_the_mean_has_the_closed_form():
    """Commuting covariances that are not diagonal: S and s^2 S are (s - 1)^2 tr S apart."""
    a = fit_gaussian(samples(40, 12))
    scaled = Gaussian(a.mean, 3 * a.factor, 9 * a.isotropic)
    assert squared_wasserstein(a, scaled) == pytest.approx(4 * np.trace(covariance(a)))


@pytest.mark.parametrize(("count", "width"), [(60, 10), (8, 40), (20, 40), (15, 30)])
def test_general_covariances_agree_with_scipy(count: int, width: int):
    a, b = fit_gaussian(samples(count, width, 1)), fit_gaussian(samples(count + 3, width, 2))
    assert squared_wasserstein(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-6)


def test_latents_of_any_shape_are_flattened():
    a, b = samples(9, 16, 1), samples(9, 16, 2)
    shaped = latent_wasserstein(a.reshape(9, 4, 2, 2), b.reshape(9, 4, 2, 2))
    assert shaped == pytest.approx(latent_wasserstein(a, b))


@pytest.mark.parametrize(("count", "width"), [(30, 6), (6, 30)])
def test_shrinkage_is_ledoit_and_wolfs(count: int, width: int):
    """Against the paper's definitions with every matrix written out."""
    x = samples(count, width).double()
    x = (x - x.mean(0)).numpy()
    s = sum(np.outer(row, row) for row in x) / count
    m = np.trace(s) / width
    d2 = np.sum((s - m * np.eye(width)) ** 2) / width
    b2 = sum(np.sum((np.outer(row, row) - s) ** 2) / width for row in x) / count**2
    expected = min(b2, d2) / d2
    assert 0 < expected < 1
    assert ledoit_wolf(torch.from_numpy(x)) == pytest.approx(expected)
    fitted = fit_gaussian(samples(count, width))
    assert fitted.shrinkage == pytest.approx(expected)
    np.testing.assert_allclose(covariance(fitted), (1 - expected) * s + expected * m * np.eye(width), atol=1e-12)


def test_shrinkage_can_be_set():
    unshrunk = fit_gaussian(samples(30, 6), shrinkage=0.0)
    np.testing.assert_allclose(covariance(unshrunk), np.cov(samples(30, 6).double().numpy().T, bias=True), atol=1e-12)
    whole = fit_gaussian(samples(30, 6), shrinkage=1.0)
    assert not whole.factor.any()
    with pytest.raises(InfusionError, match=r"0 to 1, got 1\.5"):
        fit_gaussian(samples(30, 6), shrinkage=1.5)


def test_latents_that_are_all_the_same_are_no_trouble():
    same = torch.ones(4, 3)
    assert latent_wasserstein(same, same + 2) == pytest.approx(12)


def test_one_latent_is_refused():
    with pytest.raises(InfusionError, match="cannot be fitted to 1 latents"):
        fit_gaussian(torch.ones(1, 4))


def test_few_samples_look_far_apart():
    """The distance of a distribution to itself, which is 0, is overestimated, and less so with more samples."""
    found = split_half(samples(400, 20), [5, 20, 80, 200])
    assert list(found) == [5, 20, 80, 200]
    values = list(found.values())
    assert values == sorted(values, reverse=True)
    assert values[0] > 5 * values[-1] > 0
    with pytest.raises(InfusionError, match="no halves of 201; choose 2 to 200"):
        split_half(samples(400, 20), [201])


def test_shrinkage_reaches_both_fits():
    a, b = samples(9, 16, 1), samples(9, 16, 2)
    for shrinkage in (0.0, 0.3, None):
        wanted = squared_wasserstein(fit_gaussian(a, shrinkage), fit_gaussian(b, shrinkage))
        assert latent_wasserstein(a, b, shrinkage) == pytest.approx(wanted)
    assert latent_wasserstein(a, b, 0.0) != pytest.approx(latent_wasserstein(a, b))


def test_halves_are_the_mean_of_disjoint_random_splits():
    latents, found = samples(12, 5), []
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        order = torch.randperm(12, generator=generator)
        found.append(latent_wasserstein(latents[order[:4]], latents[order[4:8]]))
    assert split_half(latents, [4], 4, 3)[4] == pytest.approx(sum(found) / 4)
    assert split_half(latents, [4]) == split_half(latents, [4], 8, 0)
    assert split_half(latents, [2, 6]).keys() == {2, 6}
    for size in (1, 7):
        with pytest.raises(InfusionError, match=f"12 latents have no halves of {size}; choose 2 to 6$"):
            split_half(latents, [size])
    with pytest.raises(InfusionError, match=r"11 latents have no halves of 6; choose 2 to 5$"):
        split_half(latents[:11], [6])


def test_two_samples_are_enough_and_any_scale_is_fine():
    pair = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    fitted = fit_gaussian(pair, 0.0)
    np.testing.assert_allclose(covariance(fitted), [[1.0, 0.0], [0.0, 0.0]], atol=1e-12)
    assert fitted.mean.tolist() == [1.0, 0.0]
    small = samples(30, 6) * 1e-3
    assert fit_gaussian(small).shrinkage == pytest.approx(fit_gaussian(samples(30, 6)).shrinkage)
