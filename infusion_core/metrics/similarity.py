"""CLIP-I, CLIP-T and DINO as raw cosines, and diversity. Nothing is multiplied by 2.5 or 100."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InfusionError

Colour = tuple[float, float, float]


class ImageEncoder(Protocol):
    """A network that sees pictures."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Embeddings (N, D) of preprocessed pictures (N, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before an encoder sees it.

    Attributes:
        resize: the shorter edge becomes so long, px, bicubic with antialiasing.
        crop: edge of the centre square that is cut out, px.
        mean, std: RGB normalisation.
    """

    resize: int
    crop: int
    mean: Colour
    std: Colour

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] as the encoder's input (N, 3, crop, crop)."""
        height, width = pictures.shape[-2:]
        size = [self.resize * edge // min(height, width) for edge in (height, width)]
        scaled = F.interpolate(pictures.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (round((edge - self.crop) / 2) for edge in size)
        cut = scaled[..., top : top + self.crop, left : left + self.crop]
        cut = (cut * 255).round() / 255  # public tools work on bytes
        mean, std = (torch.tensor(c, device=cut.device).reshape(3, 1, 1) for c in (self.mean, self.std))
        return (cut - mean) / std


CLIP = Preprocessing(224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def masked(pictures: Tensor, mask: Tensor, fill: Colour) -> Tensor:
    """Pictures with everything outside the subject in one colour.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        mask: 1 where the subject is, (N, h, w), or (1, h, w) for all pictures; scaled to the pictures.
        fill: RGB, the encoder's mean, which its normalisation turns into 0.

    Raises:
        InfusionError: another number of masks than pictures.
    """
    if len(mask) not in (1, len(pictures)):
        raise InfusionError(f"{len(mask)} masks for {len(pictures)} pictures; give one per picture, or one for all")
    weight = F.interpolate(mask[:, None].to(pictures), pictures.shape[-2:], mode="bilinear", antialias=True)
    return torch.lerp(torch.tensor(fill).to(pictures).reshape(1, 3, 1, 1), pictures, weight)


@torch.no_grad()
def embed(
    encoder: ImageEncoder, pictures: Tensor, preprocessing: Preprocessing, mask: Tensor | None = None, batch: int = 8
) -> Tensor:
    """Embeddings (N, D) of pictures (N, 3, H, W) in [0, 1], seen through a mask if there is one (see `masked`)."""
    if mask is not None:
        pictures = masked(pictures, mask, preprocessing.mean)
    return torch.cat([encoder(preprocessing(part)).float().cpu() for part in torch.split(pictures, batch)])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every pair of embeddings, (N, D) and (M, D) to (N, M)."""
    return F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).T


def similarity(generated: Tensor, reference: Tensor) -> float:
    """Mean cosine over all generated x reference pairs: CLIP-I or DINO, by whose embeddings, (N, D) and (M, D).

    Ruiz et al., *DreamBooth*, arXiv 2208.12242, section 4.
    """
    return cosines(generated, reference).mean().item()


def text_similarity(generated: Tensor, texts: Tensor) -> float:
    """CLIP-T: mean cosine of each picture with its own prompt, (N, D) and (N, D), or (1, D) for one prompt."""
    return F.cosine_similarity(generated.double(), texts.double()).mean().item()


def diversity(embeddings: Tensor, prompts: Tensor | None = None) -> float:
    """Mean distance ``1 - cosine`` over all pairs of pictures of one prompt.

    Args:
        embeddings: (N, D).
        prompts: prompt number of each picture, (N,); None if all are of one prompt.

    Raises:
        InfusionError: no prompt has two pictures.
    """
    count = len(embeddings)
    prompts = torch.zeros(count) if prompts is None else prompts
    pairs = torch.triu(prompts[:, None] == prompts[None], diagonal=1)
    if not pairs.any():
        raise InfusionError("diversity needs at least two pictures of a prompt; draw more")
    return (1 - cosines(embeddings, embeddings)[pairs]).mean().item()
