"""From photos to what training looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..infusion_core.training.augmentation import PUBLISHED, VARIANTS, variants_of
from ..infusion_core.training.overfitting import Restraint
from ..infusion_core.training.shown import normalised
from .pictures import mask_of


@dataclass(frozen=True)
class Encoding:
    """The host's VAE, in the units of a MODEL."""

    model: Any
    vae: Any

    def pictures(self, squares: Tensor) -> Tensor:
        """Latents (N, C, h, w) of squares (N, H, W, 3)."""
        return self.model.model.process_latent_in(self.vae.encode(squares))  # type: ignore[no-any-return]

    def photos(
        self, squares: Tensor, masks: Sequence[Tensor] | None, restraint: Restraint, seed: int, flip: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Photos with their variants, and the weight of their loss over each; None for evenly.

        Args:
            squares: (N, H, W, 3).
            masks: of all or of each, or None.
            restraint: without augmentation there are no variants.
            seed: of the variants.
            flip: each photo is there mirrored as well, behind them all; N is twice as much then.

        Returns:
            (N, 1 + variants, C, h, w) and (N, 1 + variants, 1, h, w).

        Raises:
            InfusionError: another number of masks than photos, or an empty one.
        """
        count, edge = len(squares), squares.shape[1]
        squares = torch.cat([squares, squares.flip(2)]) if flip else squares
        if not restraint.augment:
            latents = self.pictures(squares)
            small = None if masks is None else _doubled(normalised(mask_of(masks, latents[:count], edge)), flip)
            return latents[:, None], None if small is None else small[:, None]
        photos = squares.movedim(-1, 1)
        given = None if masks is None else _doubled(mask_of(masks, photos[:count], edge), flip)
        if given is not None:
            normalised(given)  # refuses an empty one
        made = variants_of(photos, VARIANTS, seed, given, restraint.augmentation or PUBLISHED)
        flat = self.pictures(made.pictures.flatten(0, 1).movedim(1, -1))
        latents = flat.reshape(*made.pictures.shape[:2], *flat.shape[1:])
        return latents, made.weights(*latents.shape[-2:])


def _doubled(masks: Tensor, flip: bool) -> Tensor:
    """Masks (N, 1, h, w), and behind them the mirrored ones if there are any."""
    return torch.cat([masks, masks.flip(3)]) if flip else masks
