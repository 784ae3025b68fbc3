"""The two streams: a base pass supplies the attention maps, the concept pass attends with them and adds residuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .attention import Plan, QueryKey, SuppliedMaps
from .injection import Injection
from .readers import Recorder

BaseLatent = Literal["shared", "own"]
Predict = Callable[[Plan], Tensor]  # a forward pass under a plan


def base_then_concept(
    base: Predict, concept: Predict, injections: Sequence[Injection], rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """A base pass, then a concept pass with its attention maps. The base pass never depends on residuals.

    Args:
        base: the base pass.
        concept: the concept pass.
        injections: residuals of the concept pass.
        rows: those of the base pass that the concept pass's rows take their maps from.

    Returns:
        What both passes gave.
    """
    maps: dict[str, QueryKey] = {}
    with torch.no_grad():
        predicted = base(Plan(readers=[Recorder(maps, rows)]))
    return predicted, concept(Plan(SuppliedMaps(maps), injections=injections))


def by_maps(replaced: Sequence[bool], predict: Callable[[list[int], bool], Tensor]) -> Tensor:
    """Rows of a batch that attend with the base stream's maps and rows that do not, in a pass each.

    Args:
        replaced: of every row, whether it attends with the base stream's maps.
        predict: what the rows of some numbers give, all with the base stream's maps or all with their own.

    Returns:
        What the rows gave, in their order.
    """
    groups = {flag: [row for row, wanted in enumerate(replaced) if wanted == flag] for flag in (True, False)}
    out = torch.cat([predict(rows, flag) for flag, rows in groups.items() if rows])
    return out[torch.tensor([*groups[True], *groups[False]]).argsort()]


def concept_stream(predict: Predict, injections: Sequence[Injection], replace_maps: bool) -> Tensor:
    """What the concept stream says, the base stream seeing the same latent; without injections the unpatched model."""
    if injections and replace_maps:
        return base_then_concept(predict, predict, injections)[1]
    return predict(Plan(injections=injections))


def both_streams(predict: Predict, injections: Sequence[Injection], replace_maps: bool) -> tuple[Tensor, Tensor]:
    """What the base stream says, without gradients, and what the concept stream says of the same latent."""
    if replace_maps:
        return base_then_concept(predict, predict, injections)
    with torch.no_grad():
        base = predict(Plan())
    return base, predict(Plan(injections=injections))
