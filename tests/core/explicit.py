"""The toy network with eq. 7 written out: softmax maps as matrices, tokens added up one by one, in float64.

It shares the toy's weights with `infusion_core`'s attention, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .toy import HEADS, ToyDenoiser

Additions = Sequence[tuple[int, int, Mapping[str, Tensor]]]  # row, position, and what is added there by site
Parts = Sequence[tuple[int, int, Mapping[str, Tensor]]]  # row, position, and by site residuals and keys, (2, parts, D)


def predict(
    denoiser: ToyDenoiser, noised: Tensor, sigma: Tensor, context: Tensor, additions: Additions = (),
    value_space: bool = False, maps: Sequence[Tensor] | None = None, parts: Parts = (),
    queries: Sequence[Tensor] | None = None, seen: list[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The network's output (R, 4, 2, 2), and the map (R, heads, N, L) of every layer.

    Args:
        denoiser: its weights.
        noised, sigma, context: as in `Denoiser.predict`, float64.
        additions: residuals.
        value_space: they are added after the value projection.
        maps: to attend with instead of the layers' own.
        parts: of words. What a query pays a word, it shares among the parts by their keys.
        queries: that share, (R, N, width) by layer, instead of the layers' own.
        seen: the layers' own queries are put there.
    """
    weight = {name: tensor.double() for name, tensor in denoiser.state_dict().items()}
    scaled = noised / (sigma.double().reshape(-1, 1, 1, 1) ** 2 + 1) ** 0.5
    hidden = scaled.flatten(2).transpose(1, 2) @ weight["enter.weight"].T + weight["enter.bias"]
    used = []
    for layer, site in enumerate(denoiser.base.sites):
        rows = []
        value_in = context.clone()
        for row, position, by_site in additions:
            if not value_space:
                value_in[row, position] = value_in[row, position] + by_site[site.name]
        q, k = hidden @ weight[f"q.{layer}.weight"].T, context @ weight[f"k.{layer}.weight"].T
        v = value_in @ weight[f"v.{layer}.weight"].T
        for row, position, by_site in additions:
            if value_space:
                v[row, position] = v[row, position] + by_site[site.name]
        if seen is not None:
            seen.append(q)
        asking = q if queries is None else queries[layer]
        width = q.shape[-1] // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            own = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / width**0.5, dim=-1)
            rows.append(own if maps is None else maps[layer][:, head])
        used.append(torch.stack(rows, 1))
        out = [
            sum(used[-1][:, head, :, t, None] * v[:, None, t, head * width : (head + 1) * width]
                for t in range(context.shape[1]))
            for head in range(HEADS)
        ]  # fmt: skip
        for row, position, by_site in parts:
            values, keys = by_site[site.name]
            v_parts, k_parts = values @ weight[f"v.{layer}.weight"].T, keys @ weight[f"k.{layer}.weight"].T
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                shares = torch.softmax(asking[row, :, part] @ k_parts[:, part].T / width**0.5, dim=-1)  # (N, parts)
                added = torch.zeros_like(out[head])
                added[row] = used[-1][row, head, :, position, None] * (shares @ v_parts[:, part])
                out[head] = out[head] + added
        hidden = hidden + torch.cat(out, -1)
    left = hidden @ weight["leave.weight"].T + weight["leave.bias"]
    return left.transpose(1, 2).reshape(noised.shape), used
