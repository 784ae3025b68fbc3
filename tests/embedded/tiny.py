"""The smallest models that load: to be broken by the thousand. A folder loads in some 30 ms."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .factories import WORDS, save_tokenizer

KINDS = ("words", "sd1", "sdxl")
CONTEXT = 8


def save_tiny(folder: Path, kind: str) -> Path:
    """Write a model folder: ``words`` (as TinyWorld), ``sd1`` or ``sdxl`` (two text encoders)."""
    torch.manual_seed(0)
    two = kind == "sdxl"
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2,
             "projection_class_embeddings_input_dim": CONTEXT + 6 * 2} if two else {}  # fmt: skip
    UNet2DConditionModel(
        sample_size=4, block_out_channels=(4, 8), layers_per_block=1, cross_attention_dim=CONTEXT * (2 if two else 1),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=2, **extra,
    ).save_pretrained(folder / "unet")  # fmt: skip
    if kind == "words":
        AutoencoderTiny(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).save_pretrained(folder / "vae")  # fmt: skip
    else:
        AutoencoderKL(
            block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        ).save_pretrained(folder / "vae")  # fmt: skip
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    _save_text(folder, two, words=kind == "words")
    (folder / "infusion.json").write_text(json.dumps({"guidance": 3.0, "steps": 2, "device": "cpu"}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def _save_text(folder: Path, two: bool, words: bool) -> None:
    for suffix in ("", "_2") if two else ("",):
        kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
        config = CLIPTextConfig(
            vocab_size=600, hidden_size=CONTEXT, intermediate_size=8, projection_dim=CONTEXT, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        kind(config).save_pretrained(folder / f"text_encoder{suffix}")
        if not words:
            save_tokenizer(folder / f"tokenizer{suffix}")
    if words:
        (folder / "tokenizer").mkdir()
        told = {"start": 0, "end": 1, "length": 77, "words": {word: 2 + i for i, word in enumerate(WORDS)}}
        (folder / "tokenizer" / "words.json").write_text(json.dumps(told))
