"""What training looks at: encoded pictures, how their loss is weighted, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..denoiser import Conditioning, stack
from ..errors import InfusionError
from ..noise import Prediction, seeded
from .objective import Noised, Times, timesteps


class Captions(Protocol):
    """Captions as the network reads them."""

    def __len__(self) -> int: ...

    def __call__(self, rows: Sequence[int]) -> Conditioning:
        """Captions by number, a row each; gradients flow into text encoders that are trained."""
        ...


@dataclass(frozen=True)
class EncodedCaptions:
    """Captions that a frozen text encoder has read, a row each and all of one context length."""

    read: Sequence[Conditioning]

    def __len__(self) -> int:
        return len(self.read)

    def __call__(self, rows: Sequence[int]) -> Conditioning:
        return stack([self.read[row] for row in rows])


@dataclass(frozen=True)
class LiveCaptions:
    """Captions that are read anew at every pass, since their text encoder is trained.

    Attributes:
        count: of captions.
        read: a caption by number; all are of one context length.
    """

    count: int
    read: Callable[[int], Conditioning]

    def __len__(self) -> int:
        return self.count

    def __call__(self, rows: Sequence[int]) -> Conditioning:
        wanted = sorted({*rows})  # each is read once
        read = stack([self.read(row) for row in wanted])
        places = [wanted.index(row) for row in rows]
        return Conditioning(read.context[places], {name: extra[places] for name, extra in read.extras.items()})


# From timesteps (B,), and how many variants there are beside the picture itself: one for each sample, (B,), by number.
ChosenVariants = Callable[[Tensor, int, Generator], Tensor]
Said = Sequence[Sequence[int]]  # of each picture, the numbers of the captions that may be said of it


def drawn_captions(said: Said | None, pictures: Tensor, count: int, generator: Generator) -> Tensor:
    """A caption for each picture of a batch, by number (B,).

    Args:
        said: None where any of `count` captions may be said of any picture.
        pictures: by number, (B,).
        count: of all captions.
        generator: random numbers.
    """
    if said is None:
        return torch.randint(count, pictures.shape, generator=generator)
    shares = torch.rand(pictures.shape, generator=generator).tolist()
    own = [said[picture] for picture in pictures.tolist()]
    return torch.tensor([captions[int(share * len(captions))] for captions, share in zip(own, shares, strict=True)])


def captions_in_turn(said: Said | None, pictures: Tensor, turns: Tensor, count: int) -> Tensor:
    """As `drawn_captions`, taking turns instead of drawing; `turns` (B,) says whose it is."""
    if said is None:
        return turns % count
    pairs = zip(pictures.tolist(), turns.tolist(), strict=True)
    return torch.tensor([said[picture][turn % len(said[picture])] for picture, turn in pairs])


def require_said(said: Said | None, pictures: int, captions: int) -> None:
    """Check that something may be said of every picture.

    Raises:
        InfusionError: of one nothing may, or a caption that is not there.
    """
    if said is None:
        return
    if len(said) != pictures or not all(said) or any(not 0 <= n < captions for own in said for n in own):
        raise InfusionError(
            f"{len(said)} sets of captions for {pictures} photos; give at least one caption for each photo"
        )


@dataclass(frozen=True)
class Drawn:
    """A batch, before anything is noised.

    Attributes:
        pictures: by number, (B,).
        variants: of each, 0 being the picture itself, (B,).
        captions: by number, (B,).
        times: training timesteps, (B,).
        eps: unit noise, (B, C, H, W).
    """

    pictures: Tensor
    variants: Tensor
    captions: Tensor
    times: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Shown:
    """Pictures to learn from, and what is said of them.

    Attributes:
        latents: encoded photos with their variants, (N, 1 + variants, C, H, W); the first of each is the photo itself.
        captions: of them.
        masks: weight of the loss over each, (N, 1 + variants, 1, H, W), 1 on average; None for evenly.
        said: which captions may be said of each; None for any.

    Raises:
        InfusionError: no picture, one that is not finite, no caption, or none for a picture.
    """

    latents: Tensor
    captions: Captions
    masks: Tensor | None = None
    said: Said | None = None

    def __post_init__(self) -> None:
        checked(self.latents)
        if not len(self.captions):
            raise InfusionError("no captions; give at least one")
        require_said(self.said, len(self.latents), len(self.captions))

    def drawn(self, size: int, times: Times, steps: int, generator: Generator, variants: ChosenVariants) -> Drawn:
        """A random batch. What is drawn in which order is what a resumed run repeats.

        Args:
            size: of the batch.
            times: how its timesteps are chosen.
            steps: training timesteps of the model.
            generator: random numbers.
            variants: chooses one of each picture; 0 takes the place of one without any weight.
        """
        pictures = torch.randint(len(self.latents), (size,), generator=generator)
        captions = drawn_captions(self.said, pictures, len(self.captions), generator)
        at = timesteps(times, size, steps, generator)
        eps = torch.randn(size, *self.latents.shape[2:], generator=generator)
        chosen = variants(at, self.latents.shape[1] - 1, generator)
        return Drawn(pictures, chosen * self._counts[pictures, chosen], captions, at, eps)

    def fixed(self, draws: int, size: int, steps: int, seed: int) -> Iterator[Drawn]:
        """The same batches at every call, of pictures as they are.

        Pictures and captions take turns, timesteps are spread evenly.

        Args:
            draws: samples in all.
            size: of a batch, at most.
            steps: training timesteps of the model.
            seed: of the noise.
        """
        times = ((torch.arange(draws) + 0.5) * steps / draws).long()
        eps = torch.randn(draws, *self.latents.shape[2:], generator=seeded(seed))
        every = in_turn(len(self.latents), draws)
        for part in torch.split(torch.arange(draws), size):
            captions = captions_in_turn(self.said, every[part], part, len(self.captions))
            yield Drawn(every[part], part * 0, captions, times[part], eps[part])

    def noised(self, drawn: Drawn, sigmas: Tensor, prediction: Prediction) -> Noised:
        """The pictures of a batch at its noise levels, for a model of those `sigmas` that predicts so."""
        latents = self.latents[drawn.pictures, drawn.variants]
        return Noised.of(latents, drawn.times, drawn.eps, sigmas, prediction)

    def weighted(self, drawn: Drawn) -> Tensor | None:
        """The masks of a batch, (B, 1, H, W), or None."""
        return None if self.masks is None else self.masks[drawn.pictures, drawn.variants]

    @cached_property
    def _counts(self) -> Tensor:
        """Whether any of a variant is learned from, (N, 1 + variants)."""
        if self.masks is None:
            return torch.ones(self.latents.shape[:2], dtype=torch.bool)
        return self.masks.flatten(2).any(2).cpu()


def in_turn(count: int, turns: int) -> Tensor:
    """Whose turn it is, (turns,): one after the other; where there are more than turns, as far apart as they can be."""
    return torch.arange(turns) % count if count <= turns else torch.arange(turns) * count // turns


def checked(latents: Tensor) -> Tensor:
    """Encoded images (N, C, H, W), all finite.

    Raises:
        InfusionError: there is none, or one is not finite.
    """
    if not len(latents):
        raise InfusionError("no images to learn from; give at least one")
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0]) + 1
        raise InfusionError(
            f"image {first} of {len(latents)} is not a finite number everywhere once it is encoded; check that the "
            "picture itself holds no NaN, or use a VAE in full precision (SDXL's own overflows in half precision)"
        )
    return latents


def normalised(masks: Tensor, names: Sequence[str] = ()) -> Tensor:
    """Loss weights (N, 1, H, W) with a mean of 1 in each image.

    Args:
        masks: (N, 1, H, W).
        names: of their photos, for errors.

    Raises:
        InfusionError: a mask is empty, negative or not finite.
    """
    means = masks.mean(dim=(1, 2, 3), keepdim=True)
    good = (means.flatten() > 0) & masks.isfinite().flatten(1).all(1) & (masks.flatten(1).amin(1) >= 0)
    if not good.all():
        first = int((~good).nonzero()[0])
        which = f"the mask of {names[first]}" if names else f"mask {first + 1} of {len(masks)}"
        raise InfusionError(f"{which} is empty or not between 0 and 1; paint the subject white")
    return masks / means
