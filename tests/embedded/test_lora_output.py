"""The LoRA file that training writes, read by diffusers, by peft's loader there, and by this project."""

from __future__ import annotations

from copy import deepcopy

import pytest
import safetensors.torch
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

from infusion_core.embedded.adapters import read_lora, with_lora
from infusion_core.embedded.lora import layers_of
from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError
from infusion_core.lora import UP, LoraSet
from infusion_core.lora_output import TrainedLora, lora_bytes

from .factories import save_model


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, tmp_path_factory):
    widths = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
    folder = save_model(tmp_path_factory.mktemp("lora") / request.param, request.param, widths[request.param])
    return load_model(str(folder), "cpu")


@pytest.fixture
def lora(model):
    made = LoraSet(layers_of(model, "transformer", True), 3, 5.0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in made.tensors.items():
        if name.endswith(UP):
            tensor.data.normal_(0, 0.3, generator=generator)
    return made


def trained(model, lora):
    return TrainedLora(lora.tensors, lora.alpha, model.denoiser.base, "sks dog", {"steps": "7", "title": "rex"})


def said(unet, model):
    """What a UNet says of a latent."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, *model.latent_shape, generator=generator)
    encoded = [model.text.encode(prompt).conditioning for prompt in ("a photo of a dog", "the beach")]
    extras = {k: torch.cat([c.extras[k] for c in encoded]) for k in encoded[0].extras}
    with torch.no_grad():
        return unet(
            x, torch.tensor([10, 700]), torch.cat([c.context for c in encoded]), added_cond_kwargs=extras or None
        ).sample


def test_diffusers_and_this_project_read_what_was_trained(model, lora, tmp_path):
    with lora.installed():
        expected = said(model.denoiser.unet, model)
        texts = model.text.encode("a photo of a dog").conditioning.context
    plain = said(model.denoiser.unet, model)
    assert (plain - expected).abs().max() > 1e-2
    file = tmp_path / "rex.safetensors"
    file.write_bytes(lora_bytes(trained(model, lora), "fp32"))

    own = with_lora(model, read_lora(file), "rex")
    own_texts = own.text.encode("a photo of a dog").conditioning.context
    torch.testing.assert_close(own_texts, texts, rtol=1e-3, atol=1e-4)
    read = deepcopy(model.denoiser.unet)

    two = len(model.text.encoders) == 2
    mixin = StableDiffusionXLLoraLoaderMixin if two else StableDiffusionLoraLoaderMixin
    state, alphas = mixin.lora_state_dict(file, unet_config=read.config)[:2]
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=read)
    encoders = [deepcopy(encoder.model) for encoder in model.text.encoders]
    for prefix, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
        mixin.load_lora_into_text_encoder(state, network_alphas=alphas, text_encoder=encoder, prefix=prefix)
    with lora.installed():  # both see the texts of the trained encoder
        model_texts = model
        for unet in (own.denoiser.unet, read):
            torch.testing.assert_close(said(unet, model_texts), expected, rtol=1e-3, atol=2e-3)
        for encoder, source in zip(encoders, model.text.encoders, strict=True):
            ids = torch.tensor([[0, 5, 9, 2]])
            torch.testing.assert_close(
                encoder(ids).last_hidden_state, source.model(ids).last_hidden_state, rtol=1e-3, atol=1e-4
            )


def test_the_file_is_kohyas_and_equal_loras_give_equal_bytes(model, lora):
    data = lora_bytes(trained(model, lora))
    assert data == lora_bytes(trained(model, lora))
    held = safetensors.torch.load(data)
    assert {tensor.dtype for name, tensor in held.items() if not name.endswith(".alpha")} == {torch.float16}
    for name in lora.tensors:
        assert name.startswith(("lora_unet_", "lora_te_text_model_", "lora_te1_text_model_", "lora_te2_text_model_"))
        torch.testing.assert_close(held[name].float(), lora.tensors[name], rtol=1e-3, atol=1e-6)
    unet = {name for name in lora.tensors if name.startswith("lora_unet_")}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in unet
    assert any("proj_in" in name for name in unet)
    assert any("ff_net_0_proj" in name for name in unet)


def test_what_cannot_be_stored_is_named(model, lora):
    lora.tensors["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"].data[0] = 1e6
    with pytest.raises(InfusionError, match=r"proj_in\.lora_up\.weight is not finite"):
        lora_bytes(trained(model, lora))
    lora_bytes(trained(model, lora), "bf16")
    with pytest.raises(InfusionError, match="unknown storage 'int4'"):
        lora_bytes(trained(model, lora), "int4")
