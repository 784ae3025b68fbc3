"""Training on base models in half precision, and on files that are stored in fp8."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.training.apt import AptSettings
from infusion_core.training.engine import sum_of_means
from infusion_core.training.residual import ResidualSettings

from .ldm import save_single_file

PHOTOS = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), "red")]


def residual(model):
    return trainer_for(model, PHOTOS, "circle", ResidualSettings(batch_size=2, steps=2, validation_draws=2))


def lora(model):
    settings = AptSettings(rank=2, batch_size=2, steps=2, validation_draws=2)
    return apt_trainer(model, PHOTOS, fill(CAPTION_TEMPLATES[:2], "circle"), settings)


def lowered(model, dtype):
    """A copy whose networks are all of that precision."""
    copy = deepcopy(model)
    for network in (copy.denoiser.unet, copy.vae, *(encoder.model for encoder in copy.text.encoders)):
        network.to(dtype)
    return copy


def gradient(make, model):
    """All gradients of the first step as one vector; then the run goes to its end."""
    trainer = make(model)
    tensors = [tensor for group in trainer.objective.groups() for tensor in group.tensors.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    with trainer.objective.lora.installed() if make is lora else nullcontext():
        loss = sum_of_means(trainer.objective.losses(torch.Generator().manual_seed(0)))
        found = torch.autograd.grad(1024 * loss, tensors, allow_unused=True)
        reports = list(trainer.run())
    assert all(torch.isfinite(torch.tensor(report.loss)) for report in reports)
    learned = trainer.learned()
    kept = learned if make is lora else learned.tensors
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize("make", [residual, lora])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_in_the_same_direction(tinyworld, make, dtype):
    full, half = gradient(make, tinyworld), gradient(make, lowered(tinyworld, dtype))
    assert torch.cosine_similarity(full, half, dim=0) > 0.97
    assert half.norm() == pytest.approx(full.norm().item(), rel=0.15)


def test_a_file_in_fp8_is_read_as_the_numbers_it_holds(tmp_path, sd1_folder):
    plain = save_single_file(sd1_folder, "sd1", tmp_path / "plain.safetensors")
    state = load_file(plain)
    rounded = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in state.items()}
    save_file(rounded, tmp_path / "small.safetensors")
    save_file({k: v.float() if v.is_floating_point() else v for k, v in rounded.items()}, tmp_path / "same.safetensors")
    small, same, whole = (
        load_model(str(tmp_path / f"{n}.safetensors"), "cpu", sd1_folder) for n in ("small", "same", "plain")
    )
    for name, weight in small.denoiser.unet.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, same.denoiser.unet.state_dict()[name])
    changed = zip(small.denoiser.unet.parameters(), whole.denoiser.unet.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in changed)


def test_a_quantised_file_with_scales_is_refused(tmp_path, sd1_folder):
    plain = load_file(save_single_file(sd1_folder, "sd1", tmp_path / "plain.safetensors"))
    key = next(name for name in plain if name.startswith("model.diffusion_model.") and name.endswith("to_q.weight"))
    save_file(plain | {key.replace(".weight", ".scale_weight"): torch.ones(1)}, tmp_path / "scaled.safetensors")
    with pytest.raises(
        InfusionError, match=r"scaled.safetensors is quantised .*get a version in fp16, bf16 or plain fp8"
    ):
        load_model(str(tmp_path / "scaled.safetensors"), "cpu", sd1_folder)
