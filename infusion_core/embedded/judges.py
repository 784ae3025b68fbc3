"""CLIP and DINO, which say how much pictures are like photos and like their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import InfusionError, printable
from ..metrics.pretrained import load_whole
from ..metrics.similarity import CLIP, DINO, embed
from .photos import square, to_tensor


@dataclass(frozen=True)
class Judges:
    """CLIP ViT-B/32 and DINO ViT-S/16 from folders in transformers' format."""

    clip: Path
    dino: Path
    device: torch.device

    @cached_property
    def _networks(self) -> tuple[Any, Any, Any, Any]:
        import transformers as tf

        try:
            found = (
                load_whole(tf.CLIPVisionModelWithProjection, self.clip),
                load_whole(tf.CLIPTextModelWithProjection, self.clip),
                load_whole(tf.ViTModel, self.dino),
            )
            tokenizer = tf.CLIPTokenizer.from_pretrained(self.clip, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InfusionError(
                f"cannot load --clip or --dino ({printable(str(error), 300)}); give folders in transformers' format"
            ) from error
        return *(n.to(self.device).eval() for n in found), tokenizer

    @property
    def networks(self) -> tuple[Any, Any, Any]:
        """CLIP's for pictures, CLIP's for texts, DINO."""
        return self._networks[:3]

    def clip_images(self, pictures: Tensor) -> Tensor:
        """CLIP's embeddings (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        return embed(lambda pixels: self._networks[0](pixels.to(self.device)).image_embeds, pictures, CLIP)

    def dino_images(self, pictures: Tensor) -> Tensor:
        """DINO's class tokens (N, D)."""
        return embed(lambda pixels: self._networks[2](pixels.to(self.device)).last_hidden_state[:, 0], pictures, DINO)

    @torch.no_grad()
    def clip_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP's embeddings (N, D) of texts."""
        tokens = self._networks[3](list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        embedded: Tensor = self._networks[1](**tokens).text_embeds
        return embedded.float().cpu()


def as_pixels(pictures: Sequence[Image.Image], edge: int) -> Tensor:
    """The centre squares of pictures as (N, 3, edge, edge) in [0, 1]."""
    return to_tensor([square(picture, edge) for picture in pictures]) / 2 + 0.5
