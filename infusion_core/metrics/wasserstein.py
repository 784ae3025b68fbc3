"""2-Wasserstein distance of Gaussians fitted to latents: how far a customised model has moved what is drawn for its
super-class (Infusion, arXiv 2404.14007, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ..errors import InfusionError
from ..noise import seeded


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution whose covariance is ``factor^T factor + isotropic * I``; d numbers, float64.

    Attributes:
        mean: (d,).
        factor: (n, d); the covariance itself, d x d, would not fit for real latents.
        isotropic: variance in every direction that shrinkage adds.
        shrinkage: weight of the isotropic part, 0 to 1.
    """

    mean: Tensor
    factor: Tensor
    isotropic: float = 0.0
    shrinkage: float = 0.0


def fit_gaussian(latents: Tensor, shrinkage: float | None = None) -> Gaussian:
    """Mean and shrunk covariance ``(1 - s) S + s (tr S / d) I`` of samples; S divides by N.

    Args:
        latents: (N, ...), every sample flattened to d numbers.
        shrinkage: s; None estimates it as Ledoit and Wolf (2004) do, which is what makes N < d usable.

    Raises:
        InfusionError: fewer than two samples, or a shrinkage outside 0 to 1.
    """
    if len(latents) < 2:
        raise InfusionError(f"a Gaussian cannot be fitted to {len(latents)} latents; give at least two")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise InfusionError(f"the shrinkage must lie in 0 to 1, got {shrinkage:g}")
    samples = latents.flatten(1).double().cpu()
    mean = samples.mean(0)
    centred = samples - mean
    weight = ledoit_wolf(centred) if shrinkage is None else shrinkage
    count, width = centred.shape
    variance = centred.square().sum().item() / count / width
    return Gaussian(mean, centred * sqrt((1 - weight) / count), weight * variance, weight)


def ledoit_wolf(centred: Tensor) -> float:
    """The weight of the isotropic part with the least expected squared error.

    Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices*, J. Multivariate
    Analysis 88 (2004): ``b^2 / d^2`` with ``d^2 = |S - m I|^2``, ``b^2 = min(d^2, 1/n^2 sum_k |x_k x_k^T - S|^2)`` in
    Frobenius norms. All of it follows from the N x N matrix of inner products.

    Args:
        centred: samples minus their mean, (N, d).
    """
    count, width = centred.shape
    gram = centred @ centred.T
    covariance_norm = gram.square().sum() / count**2  # |S|^2
    spread = covariance_norm - (gram.trace() / count) ** 2 / width  # d^2 times the width
    error = (gram.diagonal().square().sum() / count - covariance_norm) / count  # b^2 times the width
    return (torch.minimum(error, spread) / spread).item() if spread > 0 else 1.0


def squared_wasserstein(a: Gaussian, b: Gaussian) -> float:
    """``W2^2 = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`` (eq. 5), in squared latent units.

    Outside the span of both factors the covariances are isotropic; only the span is decomposed, so the cost is that of
    the numbers of samples, not of the dimension.
    """
    width = len(a.mean)
    span = torch.cat([a.factor, b.factor]).T  # (d, n_a + n_b)
    basis = torch.linalg.qr(span).Q if span.shape[1] < width else torch.eye(width, dtype=span.dtype)
    one, other = _covariance(a, basis), _covariance(b, basis)
    root = _root(one)
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    inside = one.trace() + other.trace() - 2 * cross
    outside = (width - basis.shape[1]) * (sqrt(a.isotropic) - sqrt(b.isotropic)) ** 2
    return float((a.mean - b.mean).square().sum() + inside.clamp(min=0) + outside)


def latent_wasserstein(a: Tensor, b: Tensor, shrinkage: float | None = None) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two sets of latents, (N, ...) and (M, ...).

    It is biased upward by few samples: compare figures of equal N and M only, and read them beside `split_half`.
    """
    return squared_wasserstein(fit_gaussian(a, shrinkage), fit_gaussian(b, shrinkage))


def split_half(latents: Tensor, sizes: Sequence[int], repeats: int = 8, seed: int = 0) -> dict[int, float]:
    """The bias: mean `latent_wasserstein` between two disjoint random parts of one set, by the size of the parts.

    The true distance is 0, so what is left is what few samples add.

    Args:
        latents: (N, ...).
        sizes: latents in each part, from 2 to N / 2.
        repeats: splits that are averaged.
        seed: of the splits.

    Raises:
        InfusionError: a size does not fit.
    """
    found = {}
    for size in sizes:
        if not 2 <= size <= len(latents) // 2:
            raise InfusionError(f"{len(latents)} latents have no halves of {size}; choose 2 to {len(latents) // 2}")
        generator = seeded(seed)
        total = 0.0
        for _ in range(repeats):
            order = torch.randperm(len(latents), generator=generator)
            total += latent_wasserstein(latents[order[:size]], latents[order[size : 2 * size]])
        found[size] = total / repeats
    return found


def _covariance(gaussian: Gaussian, basis: Tensor) -> Tensor:
    """The covariance within an orthonormal basis (d, r), (r, r)."""
    inside = gaussian.factor @ basis
    return inside.T @ inside + gaussian.isotropic * torch.eye(basis.shape[1], dtype=basis.dtype)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; rounding's negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
