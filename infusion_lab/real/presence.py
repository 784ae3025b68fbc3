"""Is a subject in a picture? Parts of the picture held against it and against what else they may show.

Every part of a picture is scored by how much more it is like the subject than like anything else, and a picture by the
best of its parts. Where a subject begins is learned from pictures that are known to hold it and pictures that are
known not to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 3  # overlapping squares of half the edge, along each side
PARTS = 1 + GRID**2


def parts(pictures: Tensor) -> list[Tensor]:
    """A picture and the squares of half its edge on a grid: `PARTS` of (N, 3, h, w), for square pictures."""
    edge = pictures.shape[-1]
    half = edge // 2
    starts = [round(i * (edge - half) / (GRID - 1)) for i in range(GRID)]
    return [pictures, *(pictures[..., y : y + half, x : x + half] for y in starts for x in starts)]


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) made of the middle halves of two: what a picture with two subjects may look like."""
    width = left.shape[-1]
    quarter, half = width // 4, width // 2
    return torch.cat([left[..., quarter : quarter + half], right[..., quarter : quarter + width - half]], dim=3)


def presence(similar: Tensor, thing: int) -> Tensor:
    """How clearly each picture shows a thing somewhere: the most that a part is more like it than like any other, (N,).

    Args:
        similar: similarity of each part to each thing that it may show, (N, P, K).
        thing: which of them is asked for.
    """
    others = [k for k in range(similar.shape[2]) if k != thing]
    return (similar[..., thing] - similar[..., others].amax(2)).amax(1)


@dataclass(frozen=True)
class Threshold:
    """Above which `presence` says that a subject is there, and how often it errs.

    Attributes:
        value: of presence.
        missed: share of known pictures with the subject that are called without it.
        seen: share of known pictures without the subject that are called with it.
    """

    value: float
    missed: float
    seen: float


def calibrated(present: Tensor, absent: Tensor) -> Threshold:
    """The threshold with the least sum of both errors, and the errors it has on pictures that did not choose it.

    Each known picture is judged by the threshold that all the others choose.

    Args:
        present: presence in pictures with the subject, (N,), at least two.
        absent: presence in pictures without it, (M,), at least two.
    """
    missed = [bool(one <= _best(without(present, i), absent)) for i, one in enumerate(present)]
    seen = [bool(one > _best(present, without(absent, i))) for i, one in enumerate(absent)]
    return Threshold(_best(present, absent), sum(missed) / len(missed), sum(seen) / len(seen))


def _best(present: Tensor, absent: Tensor) -> float:
    """Of the middles between neighbouring values the one that errs least; the middle one of several."""
    values = torch.tensor(sorted({*present.tolist(), *absent.tolist()}), dtype=torch.float64)
    middles = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    missed = (present.double() <= middles[:, None]).double().mean(1)
    seen = (absent.double() > middles[:, None]).double().mean(1)
    errors = missed + seen
    least = (errors == errors.min()).nonzero().flatten()
    return float(middles[least[len(least) // 2]])


def without(values: Tensor, index: int) -> Tensor:
    """All rows but one."""
    return torch.cat([values[:index], values[index + 1 :]])
