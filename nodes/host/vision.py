"""Embeddings from the host's CLIP_VISION and CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.metrics.similarity import masked

BATCH = 8


def image_embeddings(clip_vision: Any, pictures: Tensor, mask: Tensor | None) -> Tensor:
    """Projected embeddings (N, D) of pictures (N, 3, H, W) in [0, 1], seen through a mask if there is one.

    Raises:
        InfusionError: the model gives no single embedding per picture, or masks do not fit.
    """
    if mask is not None:
        pictures = masked(pictures, mask, tuple(clip_vision.image_mean))
    found = []
    for part in torch.split(pictures, BATCH):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(clip_vision.encode_image(part.movedim(1, -1))["image_embeds"].float().cpu())
    if found[0].dim() != 2:
        raise InfusionError(
            "this CLIP_VISION gives no single embedding per picture (SigLIP does not); load a CLIP ViT instead"
        )
    return torch.cat(found)


def text_embeddings(clip: Any, texts: Sequence[str], width: int) -> Tensor:
    """Embeddings (N, width) of texts, in the space of a CLIP_VISION's.

    The host gives the pooled text projected where the encoder came with its projection, else as it is; only the former
    lies in one space with pictures.

    Raises:
        InfusionError: the two are not of one space.
    """
    tokens = [clip.tokenize(text) for text in texts]
    pooled = [clip.encode_from_tokens(t, return_pooled=True)[1] for t in tokens]
    unprojected = clip.encode_from_tokens(tokens[0], return_pooled="unprojected")[1]
    if pooled[0] is None or torch.equal(pooled[0], unprojected):
        raise InfusionError(
            "the CLIP has no text projection, so its texts lie in no space with pictures (Stable Diffusion 1.x never "
            "has one); use the CLIP of SD 2.x with CLIP-ViT-H, or of SDXL with CLIP-ViT-bigG"
        )
    if pooled[0].shape[1] != width:
        raise InfusionError(
            f"the CLIP's texts are {pooled[0].shape[1]} numbers and the CLIP_VISION's pictures {width}, so they are no "
            "pair; use the CLIP of SD 2.x with CLIP-ViT-H, or of SDXL with CLIP-ViT-bigG"
        )
    return torch.cat(pooled).float().cpu()
