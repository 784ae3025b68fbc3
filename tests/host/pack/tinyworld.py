"""TinyWorld as MODEL, CLIP and VAE of the host, from the committed weights."""

import json
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from safetensors.torch import load_file
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[3]
WEIGHTS = REPOSITORY / "infusion_core" / "embedded" / "tinyworld" / "weights"
TEXT = json.loads((WEIGHTS / "text_encoder" / "config.json").read_text())
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": TEXT["hidden_size"], "use_spatial_transformer": True, "legacy": False,
    "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
    "num_heads": 4, "num_head_channels": -1,
}  # fmt: skip


class Unscaled(comfy.latent_formats.SD15):
    def __init__(self):
        super().__init__(scale_factor=1.0)


class TinyWorld(comfy.supported_models.SD15):
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
    latent_format = Unscaled


def load_unet():
    weights = load_file(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    names = comfy.utils.unet_to_diffusers(UNET)
    state = {names[k]: v.float() for k, v in weights.items()}
    config = TinyWorld(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def load_clip():
    weights = load_file(WEIGHTS / "text_encoder" / "model.safetensors")
    state = {f"clip_l.transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in weights.items()}
    vocabulary = json.loads((WEIGHTS / "tokenizer" / "words.json").read_text())
    told = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = {key: TEXT[key] for key in (*told, "max_position_embeddings")} | {"eos_token_id": 49407}
    target = TinyWorld(UNET).clip_target()
    target.params = {}
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": config, "dtype": torch.float32})
    # Every word is one token of the host's own tokenizer: its row of the embedding goes where that token is.
    key = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
    small = state[key].float()
    table = torch.zeros(49408, small.shape[1])
    table[49406], table[49407] = small[vocabulary["start"]], small[vocabulary["end"]]
    for word, row in vocabulary["words"].items():
        ids = clip.tokenizer.clip_l.tokenizer(word)["input_ids"]
        assert len(ids) == 3, word
        table[ids[1]] = small[row]
    missing, unexpected = clip.load_sd({**{k: v.float() for k, v in state.items()}, key: table}, full_model=True)
    assert not unexpected, unexpected
    assert all("logit_scale" in m or "text_projection" in m for m in missing), missing
    return clip


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)  # noqa: E731
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


class Autoencoder(nn.Module):
    """The TAESD architecture at a width of 32; the host's own has a fixed width of 64."""

    def __init__(self, width=32):
        super().__init__()

        def conv(a, b, **options):
            return nn.Conv2d(a, b, 3, padding=1, **options)

        encoder = [conv(3, width), Block(width)]
        for blocks in (1, 2, 2):
            encoder += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(blocks))]
        encoder += [conv(width, 4)]
        decoder = [conv(4, width), nn.ReLU()]
        for blocks in (2, 2, 1):
            decoder += [Block(width) for _ in range(blocks)]
            decoder += [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        decoder += [Block(width), conv(width, 3)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def encode(self, x, **_):
        return self.encoder(x.add(1).div(2))

    def decode(self, z, **_):
        return self.decoder(torch.tanh(z / 3) * 3).mul(2).sub(1)


def load_vae():
    weights = load_file(WEIGHTS / "vae" / "diffusion_pytorch_model.safetensors")
    network = Autoencoder()
    network.load_state_dict({k.replace(".layers.", "."): v.float() for k, v in weights.items()})
    host_shaped = comfy.sd.VAE(sd={"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)}, dtype=torch.float32)
    host_shaped.first_stage_model = network.eval()
    host_shaped.patcher = comfy.model_patcher.ModelPatcher(network, host_shaped.device, torch.device("cpu"))
    return host_shaped


class TestTinyWorld:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        return load_unet(), load_clip(), load_vae()


NODES = {"TestTinyWorld": TestTinyWorld}
