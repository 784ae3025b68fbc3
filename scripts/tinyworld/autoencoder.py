"""TinyWorld's autoencoder: TAESD's architecture, 32 channels wide, trained on crops round things of random scenes."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Generator, Tensor

from infusion_core.embedded.tinyworld.captions import random_scene
from infusion_core.embedded.tinyworld.painting import paint
from infusion_core.embedded.tinyworld.world import SIZE
from infusion_core.noise import seeded
from infusion_core.training.objective import ParameterGroup

WIDTH = 32
CROP = 64  # px
BATCH = 16
PICTURES = 6000
BLUR = 0.05  # standard deviation of the noise that latents are decoded with: a diffusion model's are never exact


def build_autoencoder() -> AutoencoderTiny:
    """The untrained autoencoder; 8x down, 4 latent channels."""
    channels = (WIDTH,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 1),
    )


class AutoencoderObjective:
    """Reconstruction of pictures, with latents kept at mean 0 and variance 1.

    Args:
        seed: of the pictures.
        device: that trains.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        rng = Random(seed)
        self._scenes = [random_scene(rng) for _ in range(PICTURES)]
        painted = [(paint(scene) * 255 + 0.5).astype(np.uint8) for scene in self._scenes]
        self._pictures = torch.from_numpy(np.stack(painted))  # (N, H, W, 3)
        self.vae = build_autoencoder().to(device, memory_format=torch.channels_last).train()

    def groups(self) -> list[ParameterGroup]:
        """The whole network."""
        return [ParameterGroup(dict(self.vae.named_parameters()))]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """``pixels`` (B,): absolute and squared error; ``spread`` (): how far latents are from mean 0, variance 1."""
        x = self._crops(BATCH, generator)
        latents = self.vae.encode(x).latents
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        off = self.vae.decode(latents + BLUR * noise).sample - x
        # So that the noise schedule fits without a scale factor.
        spread = latents.mean(dim=(0, 2, 3)).square().mean() + (latents.var(dim=(0, 2, 3)) - 1).square().mean()
        return {"pixels": (off.abs() + off.square()).mean(dim=(1, 2, 3)), "spread": 0.02 * spread}

    def validation(self, draws: int, seed: int) -> Tensor:
        """Mean absolute error (draws,) in [0, 1] of fixed crops, without noise on the latents."""
        x = self._crops(draws, seeded(seed))
        return (self.vae.decode(self.vae.encode(x).latents).sample - x).abs().mean(dim=(1, 2, 3)) / 2

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> AutoencoderTiny:
        """The autoencoder itself."""
        return self.vae

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing beside the weights."""
        return {}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""

    def _crops(self, count: int, generator: Generator) -> Tensor:
        """Crops (count, 3, CROP, CROP) in [-1, 1], on the 8 px grid: a thing, somewhere in the middle of each."""
        out = []
        for index in torch.randint(len(self._scenes), (count,), generator=generator).tolist():
            things = self._scenes[index].things
            thing = things[int(torch.randint(len(things), (), generator=generator))]
            off = torch.randint(-16, 17, (2,), generator=generator) - CROP // 2
            corner = (torch.tensor(thing.centre) + off).div(8).round().long().mul(8).clamp(0, SIZE - CROP)
            x, y = corner.tolist()
            out.append(self._pictures[index, y : y + CROP, x : x + CROP])
        crops = torch.stack(out).permute(0, 3, 1, 2).float() / 127.5 - 1
        return crops.to(self.vae.device, memory_format=torch.channels_last)
