"""Photos for training, encoded, with their variants where overfitting is to be held back by them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..training.augmentation import PUBLISHED, VARIANTS, variants_of
from ..training.overfitting import Restraint
from ..training.shown import normalised
from .model import EmbeddedModel
from .photos import square, to_tensor


def encoded(
    model: EmbeddedModel, photos: Sequence[Image.Image], restraint: Restraint, seed: int,
    masks: Sequence[Image.Image | None] = (),
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Latents (N, 1 + variants, C, h, w) of photos and their variants, and how their loss is weighted; None for evenly.

    Args:
        model: encodes.
        photos: of the subject.
        restraint: without augmentation there are no variants.
        seed: of the variants.
        masks: white where the subject is in each photo, or None for all of it.

    Raises:
        InfusionError: a mask is empty.
    """
    given = _weights(masks, model.resolution)
    if not restraint.augment:
        latents = model.encode(list(photos))[:, None]
        if given is None:
            return latents, None
        small = F.adaptive_avg_pool2d(given, (latents.shape[3], latents.shape[4]))
        return latents, normalised(small)[:, None].to(latents)
    if given is not None:
        normalised(given)  # refuses an empty one
    pixels = to_tensor([square(photo, model.resolution) for photo in photos])
    made = variants_of(pixels / 2 + 0.5, VARIANTS, seed, given, restraint.augmentation or PUBLISHED)
    latents = model.encode_pixels(made.pictures.flatten(0, 1) * 2 - 1)
    shaped = latents.reshape(*made.pictures.shape[:2], *latents.shape[1:])
    return shaped, made.weights(*latents.shape[2:]).to(latents)


def _weights(masks: Sequence[Image.Image | None], edge: int) -> Tensor | None:
    """Masks as weights (N, 1, edge, edge); None where no photo has one."""
    if not any(mask is not None for mask in masks):
        return None
    whole = Image.new("L", (edge, edge), "white")
    cut = [whole if mask is None else square(mask, edge) for mask in masks]
    return (to_tensor(cut)[:, :1] + 1) / 2
