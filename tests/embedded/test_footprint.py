"""The memory that training announces, against what PyTorch's allocator has recorded of a real step."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from benchmarks.turns import most_allocated
from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.tasks import trainer_for
from infusion_core.training.apt import AptSettings
from infusion_core.training.engine import sum_of_means
from infusion_core.training.footprint import Live, footprint
from infusion_core.training.residual import ResidualSettings

PHOTOS = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), "red")]


def residual(model):
    return trainer_for(model, PHOTOS, "circle", ResidualSettings(batch_size=3))


def lora(model):
    return apt_trainer(model, PHOTOS, fill(CAPTION_TEMPLATES[:2], "circle"), AptSettings(rank=2, batch_size=2))


def most_alive(trainer):
    """The allocator's own record: most bytes that were allocated and not freed while a step went on."""
    tensors = [tensor for group in trainer.objective.groups() for tensor in group.tensors.values()]

    def step():
        losses = trainer.objective.losses(torch.Generator().manual_seed(0))
        torch.autograd.grad(sum_of_means(losses), tensors, allow_unused=True)

    return most_allocated(step)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [residual, lora])
def test_the_announced_step_is_the_real_one(tinyworld, make, checkpointing):
    tinyworld.denoiser.checkpointing = checkpointing
    try:
        trainer = make(tinyworld)
        with trainer.objective.lora.installed() if make is lora else nullcontext():
            found = footprint(trainer, tinyworld.denoiser, 0)
            assert found.step == pytest.approx(most_alive(trainer), rel=0.1)
    finally:
        tinyworld.denoiser.checkpointing = False


def test_a_convolution_on_a_cpu_holds_its_weights_twice_while_it_runs():
    layer = torch.nn.Conv2d(512, 512, 3, padding=1).requires_grad_(False)
    picture = torch.randn(1, 512, 8, 8, requires_grad=True)

    def step():
        torch.autograd.grad(layer(picture).sum(), picture)

    with Live() as counted:
        step()
    assert counted.most == pytest.approx(most_allocated(step), rel=0.1)
