"""What the benchmarks of the embedded host share: networks of a given geometry, and options.

Weights are random: neither speed nor memory depends on them.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging
from turns import device

from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import sigmas_from_alphas

SIZES = {
    "tiny": {"block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 128,
             "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
             "attention_head_dim": 4},
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
}  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--host", choices=("embedded", "comfyui"), default="embedded")
    options.add_argument("--size", choices=tuple(SIZES), default="sd15")
    options.add_argument("--latent", type=int, default=32, help="edge of the latent")
    options.add_argument("--repeats", type=int, default=3)
    return options


def build(size: str) -> tuple[UNetDenoiser, DDIMScheduler]:
    """A randomly initialised network of that geometry, with Stable Diffusion's schedule."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    dtype = torch.float16 if device() == "cuda" else torch.float32
    unet = UNet2DConditionModel(sample_size=32, **SIZES[size]).to(device(), dtype)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return UNetDenoiser(unet, sigmas_from_alphas(scheduler.alphas_cumprod), "epsilon"), scheduler
