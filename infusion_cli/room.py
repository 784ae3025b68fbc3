"""How much memory a run will take, said before its first step."""

from __future__ import annotations

from typing import Any

import torch

from infusion_core.denoiser import Denoiser
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.training.engine import Trainer
from infusion_core.training.footprint import footprint

from .console import say


def say_footprint(trainer: Trainer[Any], denoiser: Denoiser) -> None:
    """Say what training of diffusers' UNet will take and, on a GPU that has less left, what needs less.

    A LoRA must be installed.
    """
    if not isinstance(denoiser, UNetDenoiser):
        return
    found = footprint(trainer, denoiser, sum(p.nbytes for p in denoiser.unet.parameters()))
    if found is None:
        return
    told = found.told()
    say(told[0].upper() + told[1:])
    if denoiser.device.type == "cuda":
        reserved = torch.cuda.memory_reserved(denoiser.device) - torch.cuda.memory_allocated(denoiser.device)
        warning = found.warning(torch.cuda.mem_get_info(denoiser.device)[0] + reserved)
        if warning:
            say(f"Warning: {warning}")
