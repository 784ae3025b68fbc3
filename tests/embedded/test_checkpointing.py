"""Gradient checkpointing: the same bits from less that is kept, under every plan; and what is left of it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from torch import nn

from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.checkpointing import checkpointed
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.tasks import trainer_for
from infusion_core.training.apt import AptSettings
from infusion_core.training.engine import sum_of_means
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualSettings

PHOTOS = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), "red")]


def residual(**changed):
    def make(model):
        trainer = trainer_for(model, PHOTOS, "circle", ResidualSettings(batch_size=3, **changed))
        with torch.no_grad():
            for group in trainer.objective.groups():
                for tensor in group.tensors.values():
                    tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
        return trainer.objective, nullcontext()

    return make


def lora(**changed):
    def make(model):
        objective = apt_trainer(
            model, PHOTOS, fill(CAPTION_TEMPLATES[:2], "circle"), AptSettings(rank=2, batch_size=2, **changed)
        ).objective
        with torch.no_grad():
            for tensor in objective.lora.tensors.values():
                tensor.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
        return objective, objective.lora.installed()

    return make


CASES = {
    "residual": residual(),
    "value": residual(layout="value"),
    "parts": residual(layout="parts"),
    "own maps": residual(replace_maps=False),
    "restrained": residual(restraint=RESTRAINED),
    "lora": lora(),
    "lora, text too": lora(text_rate=1.0),
    "plain lora": lora(stabilisation=0.0, alignment=0.0),
}


def gradients(model, make, checkpointing):
    """Losses, gradients, and how many bytes were kept for backward."""
    model.denoiser.checkpointing = checkpointing
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        objective, installed = make(model)
        with installed:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                losses = objective.losses(torch.Generator().manual_seed(5))
            sum_of_means(losses).backward()
        parameters = {name: t for group in objective.groups() for name, t in group.tensors.items()}
        return losses, {name: t.grad for name, t in parameters.items()}, sum(kept.values())
    finally:
        model.denoiser.checkpointing = False


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_same_bits(tinyworld, case):
    plain_losses, plain, much = gradients(tinyworld, CASES[case], False)
    losses, found, little = gradients(tinyworld, CASES[case], True)
    assert all(torch.equal(losses[name], loss) for name, loss in plain_losses.items())
    assert any(gradient.abs().max() > 0 for gradient in plain.values() if gradient is not None)
    for name, gradient in plain.items():
        assert (gradient is None) == (found[name] is None)
        assert gradient is None or torch.equal(found[name], gradient), name
    assert little < 0.55 * much
    assert not any("forward" in vars(module) for module in tinyworld.denoiser.unet.modules())


def test_a_block_is_run_again_with_the_options_it_had():
    """The host writes the name of each block into one dict."""

    class Block(nn.Module):
        def forward(self, x, options):
            seen.append(options["block"])
            return (x * {"first": 2.0, "second": 3.0}[options["block"]]).sin()

    seen, blocks, x = [], [Block(), Block()], torch.tensor([0.3], requires_grad=True)
    options, y = {}, x
    with checkpointed(blocks):
        for block, name in zip(blocks, ("first", "second"), strict=True):
            options["block"] = name
            y = block(y, options=options)
    y.backward()
    assert seen == ["first", "second", "second", "first"]
    expected = torch.cos(torch.tensor(0.6)) * 2 * torch.cos(3 * torch.sin(torch.tensor(0.6))) * 3
    torch.testing.assert_close(x.grad, expected.reshape(1))


def test_a_forward_of_somebody_else_is_put_back():
    block = nn.Linear(1, 1)
    block.forward = theirs = lambda x: x * 5
    with checkpointed([block]):
        assert block.forward is not theirs
        assert block(torch.ones(1)) == 5
    assert block.forward is theirs


def test_without_gradients_nothing_is_run_twice():
    runs = []

    class Block(nn.Module):
        def forward(self, x):
            runs.append(1)
            return x

    block = Block()
    with checkpointed([block]), torch.no_grad():
        block(torch.ones(1, requires_grad=True))
    assert runs == [1]
