"""From photos to what training looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        self, squares: Tensor, masks: Sequence[Tensor] | None, restraint: Restraint, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Photos with their variants, and the weight of their loss over each; None for evenly.

        Args:
            squares: (N, H, W, 3).
            masks: of all or of each, or None.
            restraint: without augmentation there are no variants.
            seed: of the variants.

        Returns:
            (N, 1 + variants, C, h, w) and (N, 1 + variants, 1, h, w).

        Raises:
            InfusionError: another number of masks than photos, or an empty one.
        """
        if not restraint.augment:
            latents = self.pictures(squares)
            small = None if masks is None else normalised(mask_of(masks, latents, squares.shape[1]))
            return latents[:, None], None if small is None else small[:, None]
        photos = squares.movedim(-1, 1)
        given = None if masks is None else mask_of(masks, photos, squares.shape[1])
        if given is not None:
            normalised(given)  # refuses an empty one
        made = variants_of(photos, VARIANTS, seed, given, restraint.augmentation or PUBLISHED)
        flat = self.pictures(made.pictures.flatten(0, 1).movedim(1, -1))
        latents = flat.reshape(*made.pictures.shape[:2], *flat.shape[1:])
        return latents, made.weights(*latents.shape[-2:])
