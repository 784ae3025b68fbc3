"""Photos for training, encoded, with their variants where overfitting is to be held back by them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ..training.augmentation import VARIANTS, variants_of
from ..training.overfitting import Restraint
from .model import EmbeddedModel
from .photos import square, to_tensor


def encoded(
    model: EmbeddedModel, photos: Sequence[Image.Image], restraint: Restraint, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Latents (N, 1 + variants, C, h, w) of photos and their variants, and how their loss is weighted; None for evenly.

    Args:
        model: encodes.
        photos: of the subject.
        restraint: without augmentation there are no variants.
        seed: of the variants.
    """
    if not restraint.augment:
        return model.encode(list(photos))[:, None], None
    pixels = to_tensor([square(photo, model.resolution) for photo in photos])
    made = variants_of(pixels / 2 + 0.5, VARIANTS, seed)
    latents = model.encode_pixels(made.pictures.flatten(0, 1) * 2 - 1)
    shaped = latents.reshape(*made.pictures.shape[:2], *latents.shape[1:])
    return shaped, made.weights(*latents.shape[2:]).to(latents)
