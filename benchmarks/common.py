"""What the benchmarks share: networks of a given geometry, options, and cases that take turns.

Weights are random: neither speed nor memory depends on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging

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


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and leave if the host cannot be measured yet."""
    args = options.parse_args(arguments)
    if args.host == "comfyui":
        sys.exit("the ComfyUI nodes are not in this version; use --host embedded")
    return args


def device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def build(size: str) -> tuple[UNetDenoiser, DDIMScheduler]:
    """A randomly initialised network of that geometry, with Stable Diffusion's schedule."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    dtype = torch.float16 if device() == "cuda" else torch.float32
    unet = UNet2DConditionModel(sample_size=32, **SIZES[size]).to(device(), dtype)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return UNetDenoiser(unet, sigmas_from_alphas(scheduler.alphas_cumprod), "epsilon"), scheduler


def take_turns(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each case after one warm-up, in turns: a machine that slows down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(repeats):
        for name, case in cases.items():
            times[name].append(_seconds(case))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(case: Callable[[], object]) -> float:
    started = time.perf_counter()
    case()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
