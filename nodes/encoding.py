"""From photos to what training looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..infusion_core.training.augmentation import PUBLISHED, VARIANTS, variants_of
from ..infusion_core.training.overfitting import Restraint
from ..infusion_core.training.shapes import step_of
from ..infusion_core.training.shown import Said, normalised
from .pictures import Group, mask_of, masks_of


@dataclass(frozen=True)
class Seen:
    """Photos of one size as training takes them.

    Attributes:
        latents: (N, 1 + variants, C, h, w).
        weights: of their loss, (N, 1 + variants, 1, h, w); None for evenly.
        said: which captions may be said of each; None for any.
    """

    latents: Tensor
    weights: Tensor | None
    said: Said | None


@dataclass(frozen=True)
class Encoding:
    """The host's VAE, in the units of a MODEL."""

    model: Any
    vae: Any

    def step(self, resolution: int) -> int:
        """What the edges of photos that keep their shape are a multiple of, px."""
        halvings = len(self.model.model.model_config.unet_config["channel_mult"]) - 1
        return step_of(resolution, self.vae.spacial_compression_encode() << halvings)

    def pictures(self, pixels: Tensor) -> Tensor:
        """Latents (N, C, h, w) of pictures (N, H, W, 3)."""
        return self.model.model.process_latent_in(self.vae.encode(pixels))  # type: ignore[no-any-return]

    def seen(
        self, groups: Sequence[Group], masks: Sequence[Tensor] | None, said: Said | None, restraint: Restraint,
        seed: int, flip: bool = False,
    ) -> list[Seen]:  # fmt: skip
        """All photos, those of each size by themselves.

        Args:
            groups: the photos.
            masks: of all or of each, or None.
            said: of each photo; behind it of the mirrored ones where there are any.
            restraint, seed, flip: see `photos`.

        Raises:
            InfusionError: another number of masks than photos, or an empty one.
        """
        each = masks_of(masks, sum(len(group.numbers) for group in groups))
        found = []
        for group in groups:
            own = None if each is None else [each[number] for number in group.numbers]
            words = said and [said[number] for number in group.numbers] * (2 if flip else 1)
            found.append(Seen(*self.photos(group.pictures, own, restraint, seed, flip), words))
        return found

    def photos(
        self, pictures: Tensor, masks: Sequence[Tensor] | None, restraint: Restraint, seed: int, flip: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Photos with their variants, and the weight of their loss over each; None for evenly.

        Args:
            pictures: (N, H, W, 3).
            masks: of each, or None.
            restraint: without augmentation there are no variants.
            seed: of the variants.
            flip: each photo is there mirrored as well, behind them all; N is twice as much then.

        Returns:
            (N, 1 + variants, C, h, w) and (N, 1 + variants, 1, h, w).

        Raises:
            InfusionError: a mask is empty.
        """
        count, size = len(pictures), (pictures.shape[2], pictures.shape[1])
        pictures = pictures.float()  # the host's may be in half precision, in which a CPU resizes nothing
        pictures = torch.cat([pictures, pictures.flip(2)]) if flip else pictures
        if not restraint.augment:
            latents = self.pictures(pictures)
            small = None if masks is None else _doubled(normalised(mask_of(masks, latents[:count], size)), flip)
            return latents[:, None], None if small is None else small[:, None]
        photos = pictures.movedim(-1, 1)
        given = None if masks is None else _doubled(mask_of(masks, photos[:count], size), flip)
        if given is not None:
            normalised(given)  # refuses an empty one
        made = variants_of(photos, VARIANTS, seed, given, restraint.augmentation or PUBLISHED)
        flat = self.pictures(made.pictures.flatten(0, 1).movedim(1, -1))
        latents = flat.reshape(*made.pictures.shape[:2], *flat.shape[1:])
        return latents, made.weights(*latents.shape[-2:])


def _doubled(masks: Tensor, flip: bool) -> Tensor:
    """Masks (N, 1, h, w), and behind them the mirrored ones if there are any."""
    return torch.cat([masks, masks.flip(3)]) if flip else masks
