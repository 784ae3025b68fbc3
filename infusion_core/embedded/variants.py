"""Photos for training, encoded, with their variants where overfitting is to be held back by them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..training.augmentation import PUBLISHED, VARIANTS, variants_of
from ..training.overfitting import Restraint
from ..training.shapes import Size, grouped, step_of
from ..training.shown import normalised
from .model import EmbeddedModel
from .photos import fitted, to_tensor
from .subject import SubjectPhotos


def encoded(
    model: EmbeddedModel, photos: SubjectPhotos, restraint: Restraint, seed: int, size: Size | None = None
) -> tuple[Tensor, Tensor | None]:
    """Latents (N, 1 + variants, C, h, w) of photos and their variants, and how their loss is weighted; None for evenly.

    Args:
        model: encodes.
        photos: of the subject, with their masks.
        restraint: without augmentation there are no variants.
        seed: of the variants.
        size: that the middle of each is scaled to; None for the model's square.

    Raises:
        InfusionError: a mask is empty.
    """
    place = size or (model.resolution, model.resolution)
    given, pictures = _weights(photos.masks, place), photos.pictures
    if not restraint.augment:
        latents = model.encode(list(pictures)) if size is None else model.encode_pixels(_pixels(pictures, size))
        if given is None:
            return latents[:, None], None
        small = F.adaptive_avg_pool2d(given, (latents.shape[2], latents.shape[3]))
        return latents[:, None], normalised(small, photos.names)[:, None].to(latents)
    if given is not None:
        normalised(given, photos.names)  # refuses an empty one
    made = variants_of(_pixels(pictures, place) / 2 + 0.5, VARIANTS, seed, given, restraint.augmentation or PUBLISHED)
    latents = model.encode_pixels(made.pictures.flatten(0, 1) * 2 - 1)
    shaped = latents.reshape(*made.pictures.shape[:2], *latents.shape[1:])
    return shaped, made.weights(*latents.shape[2:]).to(latents)


def sizes_of(model: EmbeddedModel, photos: SubjectPhotos, aspect: bool) -> dict[Size | None, list[int]]:
    """The numbers of the photos of each size that is trained on; None is the model's square.

    Args:
        model: knows what sizes there can be.
        photos: of the subject.
        aspect: they keep their shape.
    """
    if not aspect:
        return {None: list(range(len(photos.pictures)))}
    step = step_of(model.resolution, model.factor)
    found = grouped([photo.size for photo in photos.pictures], model.resolution, step)
    return dict(found.items())


def _pixels(photos: Sequence[Image.Image], size: Size) -> Tensor:
    """The middle of each photo, (N, 3, H, W) in [-1, 1]."""
    return to_tensor([fitted(photo, size) for photo in photos])


def _weights(masks: Sequence[Image.Image | None], size: Size) -> Tensor | None:
    """Masks as weights (N, 1, H, W); None where no photo has one."""
    if not any(mask is not None for mask in masks):
        return None
    whole = Image.new("L", size, "white")
    cut = [whole if mask is None else fitted(mask, size) for mask in masks]
    return (to_tensor(cut)[:, :1] + 1) / 2
