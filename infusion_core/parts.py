"""The layout ``parts``: what a word adds depends on the query, so that parts of a thing (a face, a stripe) may differ.

Every query pays the word's token the attention that the maps say, as in eq. 7, and shares it among learned residuals by
learned keys. Maps of words stay as they are, and so does every prompt without the word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .injection import Injection
from .sites import Site

OfRows = Callable[[Tensor], Tensor]  # from numbers of rows (M,)
Projected = Callable[[Tensor], Tensor]  # from context-space vectors (M, P, D) to (M, heads, P, head width)


@dataclass(frozen=True)
class Layer:
    """What a cross-attention layer attends with, split into heads.

    Attributes:
        query: of some rows, (M, heads, N, head width).
        key: of some rows, (M, heads, L, head width).
        to_k, to_v: the projections.
    """

    query: OfRows
    key: OfRows
    to_k: Projected
    to_v: Projected


def additions(injections: Iterable[Injection], site: Site, layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    """What the parts of words add to the output of attention at a site, before the output projection.

    At query n: ``a(n) sum_j softmax_j(q(n) . W_K key_j / sqrt(d)) W_V residual_j``, where ``a(n)`` is the attention
    that n pays the word's token. Neither map is materialised: both are fused attention, the first over values that are
    1 at the word and 0 elsewhere. With one part it is eq. 7.

    Yields:
        Rows (M,) and what is added to each, (M, heads, N, head width); a row may stand there several times.
    """
    for injection in injections:
        if injection.space != "output" or not len(injection.rows):
            continue
        numbers = injection.numbers(site)
        if numbers is None:
            continue
        query, key = layer.query(injection.rows), layer.key(injection.rows)
        numbers = numbers.to(query.dtype)  # (M, 2 * parts * D)
        residuals, keys = numbers.reshape(len(numbers), 2, -1, injection.context_width).unbind(1)
        mark = torch.zeros(len(key), 1, *key.shape[2:], dtype=key.dtype, device=key.device)
        mark[torch.arange(len(key), device=key.device), :, injection.positions] = 1
        paid = F.scaled_dot_product_attention(query, key, mark.expand_as(key))[..., :1]
        shared = F.scaled_dot_product_attention(query, layer.to_k(keys), layer.to_v(residuals))
        yield injection.rows, injection.scaled(paid * shared, site)
