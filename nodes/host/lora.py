"""Training a LoRA on the host's MODEL and CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ...infusion_core.lora_layers import Targets, text_layer, unet_layer
from ...infusion_core.training.shown import Captions, EncodedCaptions, LiveCaptions
from .denoiser import encode_caption, leave_inference_mode, require_one_length

_ENCODERS = ("clip_l", "clip_g", "clip_h")  # in the order that files number them
_WEIGHT = ".weight"


def layers_of(model: Any, clip: Any, targets: Targets, text: bool) -> dict[str, nn.Module]:
    """The layers that get matrices, by the names that files give them.

    Args:
        model, clip: the host's, loaded.
        targets: of the UNet.
        text: those of the text encoders too.
    """
    unet, found = model.model.diffusion_model, dict[str | None, nn.Module]()
    for theirs, own in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items():
        name = unet_layer(theirs.removesuffix(_WEIGHT), targets) if theirs.endswith(_WEIGHT) else None
        if name is not None:
            found[name] = unet.get_submodule(own.removesuffix(_WEIGHT))
    encoders = [getattr(clip.cond_stage_model, name, None) for name in _ENCODERS] if text else []
    there = [encoder for encoder in encoders if encoder is not None]
    for number, encoder in enumerate(there):
        for path, module in encoder.transformer.named_modules():
            found[text_layer(path, number, len(there))] = module
    return {name: module for name, module in found.items() if name is not None}


@contextmanager
def text_training(clip: Any) -> Iterator[None]:
    """Load a CLIP and let gradients through it.

    Its layers add to their input in place, after layer norms have seen it; those are given copies meanwhile.
    """
    with torch.inference_mode(False):
        comfy.model_management.load_models_gpu([clip.patcher])
        leave_inference_mode(clip.cond_stage_model)
    handles = [
        module.register_forward_pre_hook(lambda _, given: (given[0].clone(), *given[1:]))
        for module in clip.cond_stage_model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def captions_for(model: Any, clip: Any, captions: Sequence[str], latents: Tensor, live: bool) -> Captions:
    """Captions as the network reads them.

    Args:
        model, clip: the host's.
        captions: what is said.
        latents: (N, C, H, W), for conditioning that depends on the size.
        live: the text encoder is trained.

    Raises:
        InfusionError: the captions take different numbers of 77-token chunks.
    """
    read = [encode_caption(model, clip, caption, latents) for caption in captions]
    require_one_length(read)
    if live:
        return LiveCaptions(len(captions), lambda row: encode_caption(model, clip, captions[row], latents))
    return EncodedCaptions(read)
