"""Infusion Inspect Maps: see where words attend while a picture is sampled."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..infusion_core.errors import InfusionError
from ..infusion_core.readers import WordMaps
from .host.compat import ADVANCED, schema
from .host.observer import observe
from .sockets import MapsSocket
from .widgets import split_words

_HEAT = ((0.0, 0.0, 0.2), (0.4, 0.0, 0.5), (0.9, 0.2, 0.2), (1.0, 0.7, 0.1), (1.0, 1.0, 0.8))  # low to high


class InfusionInspectMaps(io.ComfyNode):  # type: ignore[misc]
    """Infusion Inspect Maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionInspectMaps",
            display_name="Infusion Inspect Maps",
            category="Infusion",
            description="Note where words attend while the sampler runs. Sample with the MODEL, encode prompts with "
            "the CLIP, and read the maps with Infusion Map Images.",
            search_aliases=["attention map", "cross attention", "heatmap", "daam", "infusion"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL you sample with, patched by Infusion or not."),
                io.Clip.Input("clip", tooltip="Encode prompts with this node's CLIP output."),
                io.String.Input(
                    "words",
                    default="cat",
                    tooltip="Words whose place in the picture you want to see, separated by commas.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For the sampler."),
                io.Clip.Output(tooltip="For every prompt."),
                MapsSocket.Output(display_name="maps", tooltip="For Infusion Map Images."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, words: str) -> io.NodeOutput:
        """Put the observer on clones of MODEL and CLIP."""
        chosen = split_words(words)
        if not chosen:
            raise InfusionError("no words to watch; write some, separated by commas")
        return io.NodeOutput(*observe(model, clip, chosen))


class InfusionMapImages(io.ComfyNode):  # type: ignore[misc]
    """Infusion Map Images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the host shows it."""
        return schema(
            node_id="InfusionMapImages",
            display_name="Infusion Map Images",
            category="Infusion",
            description="Heat maps over the picture, and a mask per word. Connect the decoded picture, so that this "
            "runs after the sampler.",
            search_aliases=["attention map", "heatmap", "infusion"],
            inputs=[
                MapsSocket.Input("maps", tooltip="From Infusion Inspect Maps."),
                io.Image.Input("images", tooltip="The pictures that were sampled."),
                io.String.Input("word", default="", tooltip="The word whose place is shown. Empty: all of them."),
                io.Int.Input(
                    "size", default=0, min=0, max=256,
                    tooltip="Which layers' maps are drawn, by their shorter edge (SD1.5 at 512: 8, 16, 32, 64): small "
                    "ones show rough shapes, large ones edges. 0: all.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="heat maps", tooltip="Word by word, every picture."),
                io.Mask.Output(display_name="masks", tooltip="In the same order, scaled to 0-1."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, maps: WordMaps, images: Tensor, word: str, size: int) -> io.NodeOutput:
        """Draw the maps."""
        words = [word.strip()] if word.strip() else list(maps.words)
        masks = torch.cat([_mask(maps, w, size, images) for w in words])
        over = images[..., :3].repeat(len(words), 1, 1, 1)
        return io.NodeOutput(0.4 * over + 0.6 * heat(masks).to(over), masks)


def heat(mask: Tensor) -> Tensor:
    """Colours (B, H, W, 3) of values in [0, 1], dark blue over red to light yellow."""
    stops = torch.tensor(_HEAT)
    at = mask.clamp(0, 1) * (len(stops) - 1)
    low = at.long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (at - low)[..., None])


def _mask(maps: WordMaps, word: str, size: int, images: Tensor) -> Tensor:
    """The map of a word, scaled to 0-1 per picture, (B, H, W)."""
    if word not in maps.words:
        raise InfusionError(f"{word!r} is not watched; Infusion Inspect Maps watches: {', '.join(maps.words)}")
    height, width = images.shape[1:3]
    mean = maps.mean(word, size, height, width)
    if mean is None:
        sizes = ", ".join(map(str, maps.sizes(height, width))) or "none yet"
        raise InfusionError(
            f"there is no map of {word!r}: name it in the prompt, encode that with the CLIP of Infusion Inspect Maps, "
            f"sample with its MODEL, and choose a size among those there are ({sizes}) or 0"
        )
    if len(mean) != len(images):
        raise InfusionError(f"the maps are of {len(mean)} pictures but {len(images)} came in; connect the same batch")
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    return (mean - low) / (high - low).clamp(min=1e-9)
