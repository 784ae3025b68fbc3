"""Small randomly initialised models in diffusers' folder format: the structure of SD1.5, SD2 and SDXL."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ("a", "photo", "of", "dog", "on", "the", "beach")


def byte_symbols() -> list[str]:
    """The printable stand-ins that byte-level BPE has for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(256 - len(kept))]


def save_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that knows a few whole words; every other word is one token a letter."""
    merges = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
    vocabulary = [*byte_symbols(), *(s + "</w>" for s in byte_symbols())]
    vocabulary += [a + b for a, b in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = list(dict.fromkeys(vocabulary))
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)


def text_config(width: int, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=700, hidden_size=width, intermediate_size=2 * width, projection_dim=projection, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip


def save_model(
    folder: Path,
    kind: str = "sd1",
    context: int = 768,
    channels: tuple[int, int, int] = (16, 32, 32),
    sample_size: int = 8,
) -> Path:
    """Write a model folder: ``sd1``, ``sd2`` (v-prediction) or ``sdxl`` (two text encoders)."""
    torch.manual_seed(0)
    cross = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    extra = {}
    if kind == "sdxl":
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
            "transformer_layers_per_block": [1, 2, 1],
        }
    UNet2DConditionModel(
        sample_size=sample_size, block_out_channels=channels, layers_per_block=2,
        down_block_types=cross, up_block_types=up,
        cross_attention_dim=context, attention_head_dim=4, norm_num_groups=8, **extra,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    save_tokenizer(folder / "tokenizer")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler",
             "tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}  # fmt: skip
    if kind == "sdxl":
        save_tokenizer(folder / "tokenizer_2")
        CLIPTextModel(text_config(context * 3 // 8)).save_pretrained(folder / "text_encoder")  # 768 of 2048 in SDXL
        CLIPTextModelWithProjection(text_config(context * 5 // 8)).save_pretrained(folder / "text_encoder_2")
        parts |= {"tokenizer_2": "CLIPTokenizer", "text_encoder_2": "CLIPTextModelWithProjection"}
    else:
        CLIPTextModel(text_config(context)).save_pretrained(folder / "text_encoder")
    index: dict[str, object] = {
        name: ["transformers" if kind_.startswith("CLIP") else "diffusers", kind_] for name, kind_ in parts.items()
    }
    index["_class_name"] = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


if __name__ == "__main__":  # python -m tests.embedded.factories FOLDER [SAMPLE_SIZE]: SD1.5's channels, one level less
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    print(save_model(Path(sys.argv[1]), channels=(320, 640, 1280), sample_size=size))
