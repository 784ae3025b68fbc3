"""A model folder as one checkpoint in the original (LDM) layout: diffusers reads such files but does not write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LEVELS, LAYERS = 3, 2  # of the models that `factories` writes; the autoencoder has as many levels

UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
RESNET_PARTS = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
VAE_PARTS = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "resnets": "block", "samplers.0": "sample",
}  # fmt: skip
OPEN_CLIP_PARTS = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip


def save_single_file(folder: Path, kind: str, file: Path) -> Path:
    """Write a folder of `factories.save_model` as one safetensors file, named as Stability's own of that kind."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    parts = {"model.diffusion_model.": {_unet_key(k): v for k, v in unet.items()}, "first_stage_model.": _vae(vae)}
    if kind == "sd1":
        parts["cond_stage_model.transformer."] = _clip(text)
    elif kind == "sd2":
        parts["cond_stage_model.model."] = _open_clip(text)
    else:
        parts["conditioner.embedders.0.transformer."] = _clip(text)
        second = load_file(folder / "text_encoder_2" / "model.safetensors")
        parts["conditioner.embedders.1.model."] = _open_clip(second)
    save_file({prefix + k: v.contiguous() for prefix, part in parts.items() for k, v in part.items()}, file)
    return file


def _unet_key(key: str) -> str:
    block = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.", key)
    if block:
        side, level, part, layer = block[1], int(block[2]), block[3], int(block[4])
        place = level * (LAYERS + 1) + (LAYERS if part.endswith("samplers") else layer)
        # A level's last output block holds resnet, attention (the first level has none) and upsampler, in that order.
        child = {
            "resnets": "0",
            "attentions": "1",
            "downsamplers": "0.op",
            "upsamplers": "2.conv" if level else "1.conv",
        }
        start = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
        key = f"{start}.{child[part]}." + key[block.end() :].removeprefix("conv.")
    return _renamed(key, UNET_PARTS if "transformer_blocks" in key else UNET_PARTS | RESNET_PARTS)


def _vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def key(name: str) -> str:
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{LEVELS - 1 - int(m[1])}", name).replace("down_blocks", "down")
        return _renamed(name, VAE_PARTS)

    def tensor(name: str, value: Tensor) -> Tensor:  # attention is made of 1x1 convolutions there
        return value[:, :, None, None] if ".to_" in name and value.ndim == 2 else value

    return {key(k): tensor(k, v) for k, v in state.items()}


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"text_model." + k.removeprefix("text_model."): v for k, v in state.items()}


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        key = _renamed(name.removeprefix("text_model."), OPEN_CLIP_PARTS)
        if ".q_proj." in key:  # query, key and value are one matrix there
            joined = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            out[key.replace(".q_proj.", ".in_proj_")] = torch.cat(joined)
        elif ".k_proj." not in key and ".v_proj." not in key:
            out[key] = value
    if "text_projection.weight" in out:
        out["text_projection"] = out.pop("text_projection.weight").T
    return out


def _renamed(key: str, parts: Mapping[str, str]) -> str:
    for ours, theirs in parts.items():
        key = key.replace(ours, theirs)
    return key
