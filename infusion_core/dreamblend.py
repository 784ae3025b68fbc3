"""DreamBlend (arXiv 2411.19390): an early, underfitted model G guides a late, overfitted one E by its attention maps.

`gradient`, as published: E's latent takes a step down the gradient of the difference of E's and G's maps.
`replacement`, ours: E attends with G's maps, no gradient at all. Maps are softmax of *G's projected* query and key,
whose weights are not E's; no map outlives the site it is made at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .attention import Maps
from .errors import InfusionError
from .schedule import ALWAYS, Window
from .sites import Site, under

Mode = Literal["gradient", "replacement"]
Distance = Literal["absolute", "squared"]
LARGEST_ALPHA = 1000.0
_LOSS_SCALE = 2.0**16  # exact in float32; in a half-precision network the gradient of a mean would vanish
# Relative difference of two maps that rounding of queries and keys explains.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class BlendSettings:
    """How G guides E.

    Attributes:
        mode: ``gradient`` moves E's latent, ``replacement`` gives E the maps of G.
        alpha: in mode `gradient` the size of a step; with `normalise` that is its root mean square, in units of the
            variance-preserving latent, whose own is about 1. In mode `replacement` the share of G's maps, at most 1.
            0 is E alone.
        distance: of two maps: mean absolute difference, as published, or mean squared difference.
        normalise: the gradient of each picture is scaled to a root mean square of 1.
        gradient_steps: steps down the gradient per denoising step.
        every: denoising steps from one that is guided to the next.
        window: part of the run that is guided.
        where: which sites: names of blocks or sites or their beginnings, such as ``up`` or ``up.1``; empty for all.

    Raises:
        InfusionError: a number is out of range, or a choice unknown.
    """

    mode: Mode = "gradient"
    alpha: float = 0.02
    distance: Distance = "absolute"
    normalise: bool = True
    gradient_steps: int = 1
    every: int = 1
    window: Window = ALWAYS
    where: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InfusionError(f"unknown mode {self.mode!r}; choose gradient or replacement")
        if self.distance not in get_args(Distance):
            raise InfusionError(f"unknown distance {self.distance!r}; choose absolute or squared")
        most = 1.0 if self.mode == "replacement" else LARGEST_ALPHA
        if not 0 <= self.alpha <= most:
            raise InfusionError(f"alpha must be from 0 to {most:g} in mode {self.mode}, got {self.alpha:g}")
        for name, value in (("gradient_steps", self.gradient_steps), ("every", self.every)):
            if value < 1:
                raise InfusionError(f"{name} must be at least 1, got {value}")

    def guides(self, step: int, steps: int) -> bool:
        """Whether denoising step `step` of `steps`, counted from 0, is guided."""
        return self.alpha > 0 and step % self.every == 0 and self.window.covers(step / steps)

    def chosen(self, sites: Sequence[Site]) -> list[Site]:
        """The sites of a model that take part.

        Raises:
            InfusionError: `where` names something that the model does not have.
        """
        return under(sites, self.where)


@dataclass
class MapDistance:
    """A reader: how far the maps of a pass are from recorded ones, summed over sites.

    Attributes:
        maps: recorded, for the rows of the pass; sites without any are left out.
        distance: of two maps.
        total: sum over the sites seen so far, (R,); None before the first.
    """

    maps: Maps
    distance: Distance = "absolute"
    total: Tensor | None = None

    def __call__(self, site: Site, query: Tensor, key: Tensor) -> None:
        """Add one site's distance."""
        if site.name in self.maps:
            found = map_distance(query, key, *self.maps[site.name], self.distance)
            self.total = found if self.total is None else self.total + found


def map_distance(query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor, distance: Distance) -> Tensor:
    """Mean difference of two attention maps over heads, queries and tokens, (R,), in float32 or better.

    Its gradient flows into `query` and `key`. What is kept for it is as large as these; maps, which are larger, live
    for one row at a time. Differences that rounding explains count as none: where two passes agree, absolute difference
    would otherwise have a gradient of random signs.

    Args:
        query, key: of one pass, (R, heads, N, head width) and (R, heads, L, head width).
        other_query, other_key: of the other, of the same shapes; constants.
        distance: of two maps.

    Raises:
        InfusionError: the maps are of different size.
    """
    if query.shape != other_query.shape or key.shape != other_key.shape:
        raise InfusionError(
            f"the two models' attention maps differ in size ({_size(query, key)} and {_size(other_query, other_key)}); "
            "use prompts of equal length and two models of one kind"
        )
    out: Tensor = _MapDistance.apply(query, key, other_query, other_key, distance)  # type: ignore[no-untyped-call]
    return out


def _size(query: Tensor, key: Tensor) -> str:
    return " x ".join(map(str, (*query.shape[:3], key.shape[2])))


class _MapDistance(torch.autograd.Function):
    """See `map_distance`. The gradient is found in the forward pass, from the maps while they are there."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor,
        distance: Distance,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(query.device.type, enabled=False):  # it would take what is made precise for its own
            found, of_query, of_key = _compared(ctx.needs_input_grad[:2], query, key, other_query, other_key, distance)  # type: ignore[attr-defined]
        ctx.save_for_backward(of_query, of_key)
        ctx.numbers = query.shape[1] * query.shape[2] * key.shape[2]  # type: ignore[attr-defined]
        return found

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = (grad[0] / ctx.numbers).reshape(-1, 1, 1, 1)  # type: ignore[attr-defined]
        of_query, of_key = ctx.saved_tensors  # type: ignore[attr-defined]
        return (factor * of_query).to(of_query.dtype), (factor * of_key).to(of_key.dtype), None, None, None


def _compared(
    needed: tuple[bool, bool], query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor, distance: Distance
) -> tuple[Tensor, Tensor, Tensor]:
    """The distance (R,), and the slope of its sum over heads, queries and tokens along `query` and `key`, as needed."""
    scale, same = 1 / math.sqrt(query.shape[-1]), _SAME[query.dtype]
    of_query, of_key = torch.zeros_like(query), torch.zeros_like(key)
    found = []
    for row in range(len(query)):
        q, k, other_q, other_k = (_precise(x[row]) for x in (query, key, other_query, other_key))
        maps = (q @ k.transpose(1, 2) * scale).softmax(-1)  # (heads, N, L)
        others = (other_q @ other_k.transpose(1, 2) * scale).softmax(-1)
        apart = maps - others
        apart.masked_fill_(apart.abs() <= same * torch.maximum(maps, others), 0)
        found.append(apart.abs().mean() if distance == "absolute" else apart.square().mean())
        if not any(needed):
            continue
        slope = apart.sign() if distance == "absolute" else 2 * apart
        into = maps * (slope - (maps * slope).sum(-1, keepdim=True)) * scale  # through the softmax
        if needed[0]:
            of_query[row] = into @ k
        if needed[1]:
            of_key[row] = into.transpose(1, 2) @ q
    return torch.stack(found), of_query, of_key


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def step_down(latent: Tensor, distance_at: Callable[[Tensor], Tensor], alpha: float, normalise: bool) -> Tensor:
    """A latent less its `descent`; where there is none, the very same numbers."""
    return latent - descent(latent, distance_at, alpha, normalise)


def descent(latent: Tensor, distance_at: Callable[[Tensor], Tensor], alpha: float, normalise: bool) -> Tensor:
    """What one step down the gradient of a distance takes from a latent.

    Args:
        latent: (R, C, H, W), in the variance-preserving scale.
        distance_at: of a latent, (R,); a row's depends on that row alone.
        alpha: see `BlendSettings`.
        normalise: see there.

    Returns:
        ``alpha g``, (R, C, H, W).

    Raises:
        InfusionError: the gradient is not finite.
    """
    gradient = map_gradient(latent, distance_at)
    if normalise:
        rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        gradient = torch.where(rms > 0, gradient / rms, 0)
    return alpha * gradient.to(latent.dtype)


def map_gradient(latent: Tensor, distance_at: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a distance at a latent, (R, C, H, W), in float32 or better.

    Raises:
        InfusionError: it is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        at = _precise(latent.detach().clone()).requires_grad_()
        (gradient,) = torch.autograd.grad(distance_at(at).sum() * _LOSS_SCALE, at)
    gradient = gradient / _LOSS_SCALE
    if not gradient.isfinite().all():
        raise InfusionError(
            "the gradient of the attention maps is not finite; compute in float32, or use the mode 'replacement'"
        )
    return gradient
