"""Attention collapse: the maps of other words move onto the subject (claimed by DreamBlend, arXiv 2411.19390)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InfusionError
from .readers import WordMaps

MAP_EDGE = 16  # in which maps are compared, px


def overlap(
    maps: WordMaps, subject: str, others: Sequence[str], height: int = MAP_EDGE, width: int = MAP_EDGE
) -> Tensor:
    """How much of where other words attend is where the subject's word attends, per picture, (B,), in [0, 1].

    A map is taken above its lowest point and scaled to sum up to 1; two maps share what is under both (the
    intersection of two histograms). The mean is over the other words. What a model has more of this than its base is
    its collapse.

    Args:
        maps: of a sampling run.
        subject: the subject's word.
        others: at least one other word of the prompt.
        height, width: in which the maps are compared, as the picture's.

    Raises:
        InfusionError: a word has no map.
    """
    of_subject = _spread(maps, subject, height, width)
    shared = [torch.minimum(of_subject, _spread(maps, word, height, width)).sum((1, 2)) for word in others]
    return torch.stack(shared).mean(0)


def _spread(maps: WordMaps, word: str, height: int, width: int) -> Tensor:
    """A word's map as a distribution over the picture, (B, H, W)."""
    mean = maps.mean(word, 0, height, width)
    if mean is None:
        raise InfusionError(f"the word {word!r} has no attention map; name words that the prompt holds")
    above = mean - mean.amin((1, 2), keepdim=True)
    return above / above.sum((1, 2), keepdim=True).clamp(min=1e-12)
