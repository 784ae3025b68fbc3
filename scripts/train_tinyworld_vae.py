"""Train TinyWorld's autoencoder: the TAESD architecture, 32 channels wide, on random crops of random scenes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from infusion_core.embedded.tinyworld.captions import random_scene
from infusion_core.embedded.tinyworld.painting import paint

WIDTH = 32
CROP = 64


def build() -> AutoencoderTiny:
    """The untrained autoencoder; 8x down, 4 latent channels."""
    channels = (WIDTH,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 1),
    )


def crops(pictures: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Random crops (batch, 3, CROP, CROP) in [-1, 1] of uint8 pictures (N, H, W, 3), on the 8 px grid."""
    steps = (pictures.shape[1] - CROP) // 8 + 1
    picks = torch.randint(len(pictures), (batch,), generator=generator).tolist()
    corners = (torch.randint(steps, (batch, 2), generator=generator) * 8).tolist()
    out = [pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)]
    return torch.stack(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/tinyworld/vae"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng, generator = Random(args.seed), torch.Generator().manual_seed(args.seed)
    pictures = torch.from_numpy(
        np.stack([(paint(random_scene(rng)) * 255 + 0.5).astype(np.uint8) for _ in range(6000)])
    )
    vae = build().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps, pct_start=0.05)
    started = time.monotonic()
    for step in range(1, args.steps + 1):
        x = crops(pictures, args.batch, generator).contiguous(memory_format=torch.channels_last)
        latent = vae.encode(x).latents
        noisy = latent + 0.05 * torch.randn(latent.shape, generator=generator)
        decoded = vae.decode(noisy).sample
        # Latents are kept at mean 0 and variance 1 per channel, so the noise schedule fits without a scale factor.
        spread = latent.var(dim=(0, 2, 3))
        shape = latent.mean(dim=(0, 2, 3)).square().mean() + (spread - 1).square().mean()
        loss = F.l1_loss(decoded, x) + F.mse_loss(decoded, x) + 0.02 * shape
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            mae = (decoded - x).abs().mean().item() / 2
            print(f"step {step} mae {mae:.4f} spread {spread.mean():.2f} {time.monotonic() - started:.0f}s", flush=True)
        if step % 500 == 0 or step == args.steps:
            vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
