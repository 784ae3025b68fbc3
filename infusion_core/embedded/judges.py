"""CLIP and DINO say how much pictures are like photos and like their prompts; HPSv2 how much people like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import InfusionError, printable
from ..metrics.pretrained import load_whole
from ..metrics.similarity import CLIP, DINO, embed
from .photos import square, to_tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ClipPair:
    """CLIP's two networks, and the words that its text network reads.

    Attributes:
        vision, text: transformers' networks, with their projections.
        tokenizer: transformers'.
    """

    vision: Any
    text: Any
    tokenizer: Any

    @classmethod
    def of(cls, folder: Path, words: Path, device: torch.device) -> ClipPair:
        """Networks from one folder and a tokenizer from another, both in transformers' format.

        Raises:
            OSError, ValueError, InfusionError: something is missing or damaged.
        """
        import transformers as tf

        vision = load_whole(tf.CLIPVisionModelWithProjection, folder).to(device).eval()
        text = load_whole(tf.CLIPTextModelWithProjection, folder).to(device).eval()
        return cls(vision, text, tf.CLIPTokenizer.from_pretrained(words, local_files_only=True))

    def images(self, pictures: Tensor) -> Tensor:
        """Embeddings (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        return embed(lambda pixels: self.vision(pixels.to(self.vision.device)).image_embeds, pictures, CLIP)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, D) of texts."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.text.device)
        embedded: Tensor = self.text(**tokens).text_embeds
        return embedded.float().cpu()


@dataclass(frozen=True)
class Judges:
    """CLIP ViT-B/32 and DINO ViT-S/16 from folders in transformers' format, and HPSv2 where there is one.

    Attributes:
        clip, dino: folders.
        device: where the networks are.
        hps: folder of HPSv2 (arXiv 2306.09341), a CLIP ViT-H/14 that is trained to tell what people prefer; it reads
            words as CLIP does.
    """

    clip: Path
    dino: Path
    device: torch.device
    hps: Path | None = None

    @cached_property
    def _clip(self) -> ClipPair:
        return self._loaded("--clip", lambda: ClipPair.of(self.clip, self.clip, self.device))

    @cached_property
    def _dino(self) -> Any:
        import transformers as tf

        return self._loaded("--dino", lambda: load_whole(tf.ViTModel, self.dino).to(self.device).eval())

    @cached_property
    def preference(self) -> ClipPair | None:
        """HPSv2, whose score is the cosine of a picture and its prompt; None without a folder of it."""
        folder = self.hps
        if folder is None:
            return None
        return self._loaded("--hps", lambda: ClipPair.of(folder, self.clip, self.device))

    @property
    def networks(self) -> tuple[Any, ...]:
        """CLIP's for pictures, CLIP's for texts, DINO, and HPSv2's two if there are any."""
        hps = self.preference
        return (self._clip.vision, self._clip.text, self._dino, *(() if hps is None else (hps.vision, hps.text)))

    def clip_images(self, pictures: Tensor) -> Tensor:
        """CLIP's embeddings (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        return self._clip.images(pictures)

    def dino_images(self, pictures: Tensor) -> Tensor:
        """DINO's class tokens (N, D)."""
        return embed(lambda pixels: self._dino(pixels.to(self.device)).last_hidden_state[:, 0], pictures, DINO)

    def clip_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP's embeddings (N, D) of texts."""
        return self._clip.texts(texts)

    def _loaded(self, option: str, load: Callable[[], T]) -> T:
        """What loads from a folder.

        Raises:
            InfusionError: it does not; names the option that named the folder.
        """
        try:
            return load()
        except (OSError, ValueError) as error:
            raise InfusionError(
                f"cannot load {option} ({printable(str(error), 300)}); give a folder in transformers' format"
            ) from error


def as_pixels(pictures: Sequence[Image.Image], edge: int) -> Tensor:
    """The centre squares of pictures as (N, 3, edge, edge) in [0, 1]."""
    return to_tensor([square(picture, edge) for picture in pictures]) / 2 + 0.5
