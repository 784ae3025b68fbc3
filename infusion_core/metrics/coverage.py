"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): does one model draw what another does,
and all of that?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InfusionError

NEIGHBOURS = 3  # the paper's


@dataclass(frozen=True)
class Coverage:
    """Attributes:
    precision: share of the samples that lie among the reference's.
    recall: share of the reference's that lie among the samples.
    """

    precision: float
    recall: float


def coverage(reference: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS) -> Coverage:
    """Precision and recall of samples against a reference.

    One lies among the others if it is no further from one of them than that one's k-th nearest neighbour among its own.

    Args:
        reference: features (N, ...), each flattened.
        samples: features (M, ...).
        neighbours: k.

    Raises:
        InfusionError: no more features than neighbours.
    """
    if min(len(reference), len(samples)) <= neighbours:
        raise InfusionError(f"precision and recall need more than {neighbours} pictures of each model; draw more")
    real, made = reference.flatten(1).double(), samples.flatten(1).double()
    between = torch.cdist(real, made)  # (N, M)
    precise = (between <= _reach(real, neighbours)[:, None]).any(0)
    recalled = (between <= _reach(made, neighbours)[None]).any(1)
    return Coverage(precise.double().mean().item(), recalled.double().mean().item())


def _reach(features: Tensor, neighbours: int) -> Tensor:
    """Distance of each to its k-th nearest neighbour, (N,)."""
    apart = torch.cdist(features, features)
    apart.fill_diagonal_(float("inf"))
    return apart.kthvalue(neighbours, dim=1).values
