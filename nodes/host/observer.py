"""Reading attention maps while the sampler runs: a reader of the core's, fed from the inputs of cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.attention import split_heads
from ...infusion_core.readers import WordMaps, WordReader
from ...infusion_core.sites import Site
from .attention import layers_of
from .conds import entries_of
from .memory import Memory, mentions_in
from .mentions import Mentions, Texts, watched_key
from .model import base_of
from .options import with_option
from .patch import patch_of
from .rows import BaseRow, Entry, batch_of, site_name
from .text import memory_of, watch_words
from .trajectory import TRAJECTORY

OBSERVED = "infusion_observed"  # in the transformer options: the `Observation`; also the key of the wrappers


@dataclass(frozen=True)
class Observation:
    """One prediction that is watched.

    Attributes:
        texts: of each conditioning.
        pictures: in the batch.
    """

    texts: Mapping[Entry, Texts]
    pictures: int


class Observer:
    """The host's wrappers and attn2_patch that watch words and change nothing.

    Args:
        network: the UNet, which projects queries and keys.
        sites: its sites, by name.
        maps: filled.
        memory: of the CLIP that encodes the prompts.
    """

    def __init__(self, network: Any, sites: Mapping[str, Site], maps: WordMaps, memory: Memory) -> None:
        self._layers = layers_of(network)
        self._sites, self._maps, self._memory = sites, maps, memory

    def __deepcopy__(self, memo: object) -> Observer:
        return self  # it holds the network, and every clone writes to one set of maps

    def sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """A new run begins with no maps."""
        self._maps.clear()
        return executor(*args, **kwargs)

    def prediction(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any],
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction, watched; areas are left out, for their maps are of a part of the picture."""
        texts = {entry: mentions_in(cond, self._memory) for entry, cond in entries_of(conds) if "area" not in cond}
        options = with_option(model_options, OBSERVED, Observation(texts, len(x)))
        return executor(model, conds, x, timestep, options, *args, **kwargs)

    def inputs(self, query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The attn2_patch."""
        observation: Observation | None = extra.get(OBSERVED)
        trajectory = extra.get(TRAJECTORY)
        if observation is not None and not (trajectory is not None and trajectory.recording):
            self._read(observation, query, key, extra)
        return query, key, value

    def _read(self, observation: Observation, query: Tensor, key: Tensor, extra: dict[str, Any]) -> None:
        name = site_name(extra)
        layer, batch = self._layers[name], batch_of(extra, key, observation.pictures, "Infusion Inspect Maps")
        for i, entry in enumerate(batch.entries if batch.tiles == 1 else ()):  # maps of tiles are of a part, too
            if isinstance(entry[1], BaseRow) or entry not in observation.texts:
                continue
            texts = [text and text.repeated(key.shape[1]) for text in observation.texts[entry]]
            keys = batch.part(key, i)[0]
            if any(text is not None and text.interleaved for text in texts):
                texts, keys = [text and text.values for text in texts], keys[:, 0::2]
            positions = [self._positions(text) for text in texts]
            if any(positions):
                projected = layer.to_q(batch.part(query, i)[0]), layer.to_k(keys)
                heads = (split_heads(p, layer.heads) for p in projected)
                WordReader(slice(None), positions, self._maps)(self._sites[name], *heads)

    def _positions(self, text: Mentions | None) -> dict[str, list[int]]:
        """Context positions of each watched word that is mentioned."""
        spans = text.spans if text else {}
        found = {word: spans.get(watched_key(word), ()) for word in self._maps.words}
        return {word: sorted({p for span in own for p in span}) for word, own in found.items() if own}


def observe(model: Any, clip: Any, words: Sequence[str]) -> tuple[Any, Any, WordMaps]:
    """Clones of MODEL and CLIP that note where the given words attend.

    Raises:
        InfusionError: unsupported model.
    """
    sites, patch = base_of(model).sites_by_name, patch_of(model)
    memory = memory_of(clip) if patch is None else patch.memory
    maps = WordMaps(tuple(words))
    observer = Observer(model.model.diffusion_model, sites, maps, memory)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, OBSERVED, observer.sampling)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, OBSERVED, observer.prediction)
    patched.set_model_attn2_patch(observer.inputs)
    patches = patched.model_options["transformer_options"]["patches"]
    patches["attn2_patch"].insert(0, patches["attn2_patch"].pop())  # in front of those that add rows
    return patched, watch_words(clip, words, memory), maps
