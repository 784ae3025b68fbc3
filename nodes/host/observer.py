"""Reading attention maps while the sampler runs. Only the maps of chosen words are computed, and only summed up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import functional as F

from ...infusion_core.tokens import Span
from .binding import Memory, memory_of, observe_words, spans_in
from .model import base_of
from .passes import BaseRow, Entry, rows_of
from .patch import patch_of
from .streams import TRAJECTORY, with_option

OBSERVED = "infusion_observed"


@dataclass
class WordMaps:
    """What one sampling run showed: per word and map size, the sum over heads, layers and steps.

    Attributes:
        words: observed, in order.
        sums: by word and size (h, w): (pictures, h, w), on the CPU.
        counts: how many layers and steps each sum holds.
    """

    words: tuple[str, ...]
    sums: dict[tuple[str, tuple[int, int]], Tensor] = field(default_factory=dict)
    counts: dict[tuple[str, tuple[int, int]], int] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> WordMaps:
        return self

    def clear(self) -> None:
        """Forget everything; a new run begins."""
        self.sums.clear()
        self.counts.clear()

    def add(self, word: str, maps: Tensor) -> None:
        """Add maps (pictures, h, w) of one layer at one step."""
        place = word, (maps.shape[1], maps.shape[2])
        held = self.sums.get(place)
        maps = maps.float().cpu()
        self.sums[place] = maps if held is None or held.shape != maps.shape else held + maps
        self.counts[place] = 1 if held is None or held.shape != maps.shape else self.counts[place] + 1

    def mean(self, word: str, size: int, height: int, width: int) -> Tensor | None:
        """Mean map of a word, scaled to (pictures, height, width); None if the word was in no prompt.

        Args:
            word: observed.
            size: shorter edge of the maps to use; 0 for all sizes, each of equal weight.
            height: of the result.
            width: of the result.
        """
        means = [
            F.interpolate((total / self.counts[w, hw])[:, None], (height, width), mode="bilinear")[:, 0]
            for (w, hw), total in self.sums.items()
            if w == word and size in (0, min(hw))
        ]
        return torch.stack(means).mean(0) if means else None

    @property
    def sizes(self) -> list[int]:
        """Shorter edges of the maps there are."""
        return sorted({min(hw) for _, hw in self.sums})


@dataclass(frozen=True)
class Observation:
    """One prediction under observation: where the words stand in each conditioning, and where to write."""

    spans: Mapping[Entry, tuple[Mapping[str, tuple[Span, ...]], int]]
    maps: WordMaps
    pictures: int


def observe(model: Any, clip: Any, words: Sequence[str]) -> tuple[Any, Any, WordMaps]:
    """Clones of MODEL and CLIP that note where the given words attend.

    Raises:
        InfusionError: unsupported model.
    """
    base_of(model)
    patch = patch_of(model)
    memory = memory_of(clip) if patch is None else patch.memory
    maps = WordMaps(tuple(words))
    patched = model.clone()
    for kind, function in _wrappers(maps, memory).items():
        patched.add_wrapper_with_key(kind, OBSERVED, function)
    patched.set_model_attn2_patch(_patch(model.model.diffusion_model))
    return patched, observe_words(clip, words, memory), maps


def _wrappers(maps: WordMaps, memory: Memory) -> dict[str, Callable[..., Any]]:
    def sampling(executor: Any, *args: Any, **kwargs: Any) -> Any:
        maps.clear()
        return executor(*args, **kwargs)

    def prediction(executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor,
                   model_options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        spans = {
            (index, cond["uuid"]): (spans_in(cond, memory), int(cond["model_conds"]["c_crossattn"].cond.shape[1]))
            for index, entries in enumerate(conds)
            for cond in entries or []
            if "c_crossattn" in cond["model_conds"] and "area" not in cond
        }
        observation = Observation(spans, maps, len(x))
        options = with_option(model_options, OBSERVED, observation)
        return executor(model, conds, x, timestep, options, *args, **kwargs)

    return {WrappersMP.SAMPLER_SAMPLE: sampling, WrappersMP.CALC_COND_BATCH: prediction}


def _patch(network: Any) -> Callable[..., Any]:
    """An attn2_patch that changes nothing and notes maps; `network` projects queries and keys."""
    layers = {
        "input": network.input_blocks,
        "middle": [network.middle_block],
        "output": network.output_blocks,
    }

    def note(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        observation: Observation | None = extra.get(OBSERVED)
        trajectory = extra.get(TRAJECTORY)
        if observation is not None and not (trajectory is not None and trajectory.recording):
            side, number = extra["block"]
            block = next(m for m in layers[side][number].modules() if hasattr(m, "transformer_blocks"))
            _note(observation, block.transformer_blocks[extra["block_index"]].attn2, query, key, extra)
        return query, key, value

    return note


def _note(observation: Observation, layer: Any, query: Tensor, key: Tensor, extra: dict[str, Any]) -> None:
    height, width = extra["activations_shape"][-2:]
    for entry, rows in rows_of(extra, len(query), observation.pictures, "Infusion Inspect Maps"):
        spans, length = ({}, 1) if isinstance(entry[1], BaseRow) else observation.spans.get(entry, ({}, 1))
        for word in observation.maps.words:
            positions = sorted({p for span in spans.get(f"word:{word}", ()) for p in span})
            if positions:
                repeats = range(0, key.shape[1], length)  # the host pads a short context by repeating it
                where = [p + r for r in repeats for p in positions]
                maps = torch.stack([_map(layer, q, k, where) for q, k in zip(query[rows], key[rows], strict=True)])
                observation.maps.add(word, maps.reshape(len(maps), height, width))


def _map(layer: Any, query: Tensor, key: Tensor, positions: Sequence[int]) -> Tensor:
    """Share of attention that one picture's places (N, C) pay to some positions of the context (L, D), (N,)."""
    q = layer.to_q(query[None])[0].unflatten(-1, (layer.heads, -1)).transpose(0, 1)  # (heads, N, head width)
    k = layer.to_k(key[None])[0].unflatten(-1, (layer.heads, -1)).transpose(0, 1)
    scores = q.float() @ k.float().transpose(1, 2) / math.sqrt(q.shape[-1])
    shares: Tensor = scores.softmax(-1)[..., list(positions)].sum(-1).mean(0)
    return shares
