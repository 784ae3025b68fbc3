"""Small random models of the structure of SD1.5, SD2 (v-prediction) and SDXL, and one that is unsupported."""

import sys

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch

from .others import node, pack_name

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
}  # fmt: skip
KINDS = {
    "sd1": (
        comfy.supported_models.SD15,
        {"context_dim": 768, "adm_in_channels": None, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4],
         "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
         "use_linear_in_transformer": False},
        {"clip_l": 768},
    ),
    "sd2": (comfy.supported_models.SD20, {"context_dim": 1024, "adm_in_channels": None}, {"clip_h": 1024}),
    "sdxl": (
        comfy.supported_models.SDXL,
        {"context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential", "transformer_depth": [0, 2],
         "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2},
        {"clip_l": 768, "clip_g": 1280},
    ),
}  # fmt: skip


def random_weights(module, std):
    for name, parameter in module.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        torch.nn.init.ones_(parameter) if norm else torch.nn.init.normal_(parameter, std=std)


def patcher(inner):
    place = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(inner, load_device=place, offload_device=torch.device("cpu"))


def load(kind):
    torch.manual_seed(0)
    family, options, encoders = KINDS[kind]
    config = type("Small", (family,), {"unet_extra_config": {"num_heads": 2, "num_head_channels": -1}})(UNET | options)
    config.set_inference_dtype(torch.float32, None)
    if kind == "sd2":
        config.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    inner = config.get_model({}, "")
    random_weights(inner, 0.05)
    target = config.clip_target({})
    target.params = {}
    layers = 3  # SD2 and SDXL read the layer before the last
    sizes = {
        f"{name}_model_config": {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 64}
        for name, width in encoders.items()
    }
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    random_weights(clip.cond_stage_model, 0.05)
    return patcher(inner), clip


@node(("MODEL",))
def transformer():
    """A model without a UNet."""
    config = comfy.supported_models.SD15(UNET | {"context_dim": 128, "disable_unet_model_creation": True})
    inner = comfy.model_base.BaseModel(config, device="cpu")
    inner.diffusion_model = torch.nn.Linear(1, 1)
    return patcher(inner)


class TestSmall:
    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"kind": (list(KINDS),)}}

    def run(self, kind):
        return load(kind)


@node(("LATENT",), model="MODEL", text="CONDITIONING")
def network_output(model, text):
    """How far the trainer's view of the network is from the network itself, as a latent of one number per sigma."""
    pack = pack_name()
    denoiser_module = sys.modules[f"{pack}.nodes.host.denoiser"]
    core = sys.modules[f"{pack}.infusion_core.denoiser"]
    plan = sys.modules[f"{pack}.infusion_core.attention"].Plan()
    differences = []
    with denoiser_module.training(model) as denoiser, torch.no_grad():
        inner, context = model.model, text[0][0].clone()
        extras = {"y": torch.ones(1, 2816)} if inner.adm_channels else {}
        for index in (0, 200, 999):
            sigma = denoiser.sigmas[index : index + 1]
            noised = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(index)) * (1 + sigma)
            seen = denoiser.predict(noised, sigma, core.Conditioning(context, extras), plan)
            scaled = noised / (sigma**2 + 1) ** 0.5
            said = inner.diffusion_model(scaled, torch.tensor([float(index)]), context=context, **extras)
            differences.append((seen - said).abs().max() / said.abs().max())
    return {"samples": torch.stack(differences).reshape(1, 3, 1, 1)}


NODES = {"TestSmall": TestSmall, "TestTransformer": transformer, "TestNetworkOutput": network_output}
