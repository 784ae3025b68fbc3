"""LoRA files of every common trainer as changes of weights, told apart by their keys.

All name the same modules, each in its own way; under `module_key` a module has one name:

- kohya and OneTrainer: ``lora_unet_down_blocks_0_...lora_up.weight``, for SDXL ``lora_unet_input_blocks_4_...``
- diffusers: ``unet.down_blocks.0....lora_B.weight``, in older versions ``...processor.to_q_lora.up.weight``
- peft: ``base_model.model.down_blocks.0...``
- ComfyUI: ``diffusion_model.input_blocks.1....lora_up.weight``
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InfusionError, printable

Part = Literal["unet", "text_encoder", "text_encoder_2"]
Module = tuple[Part, str]  # a network of a model, and a module's `module_key`
NETWORKS: tuple[Part, ...] = ("unet", "text_encoder", "text_encoder_2")
Piece = Literal["up", "down", "mid", "alpha", "diff", "diff_b"]
PARTS: tuple[tuple[str, Part], ...] = (  # how keys begin; longer beginnings first
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("diffusion_model.", "unet"),
    ("unet.", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_h.transformer.", "text_encoder"),
)
_PEFT = "base_model.model."
_EMBEDDINGS = "bundle_emb."  # new words beside a LoRA, which only prompts that say them read
_PIECES: tuple[tuple[str, Piece], ...] = (
    (r"[._]lora[._]up\.weight|\.lora_B(?:\.default)?\.weight|\.lora_linear_layer\.up\.weight", "up"),
    (r"[._]lora[._]down\.weight|\.lora_A(?:\.default)?\.weight|\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.diff|\.w_norm", "diff"),
    (r"\.diff_b|\.b_norm", "diff_b"),
)
_ENDS = [(re.compile(f"(?:{pattern})$"), piece) for pattern, piece in _PIECES]
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "glora": "GLoRA",
}


@dataclass
class Change:
    """What a LoRA adds to one module.

    Attributes:
        up, down, mid: its matrices; the weight gains ``alpha / rank * up mid down``.
        alpha: a number; None for the rank.
        diff, diff_b: added to the weight and to the bias as they are.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    mid: Tensor | None = None
    alpha: Tensor | None = None
    diff: Tensor | None = None
    diff_b: Tensor | None = None

    def of_weight(self, shape: torch.Size) -> Tensor | None:
        """What is added to a weight of that shape, in float32; None for nothing.

        Raises:
            ValueError: the file's matrices do not make that shape, or some are missing.
        """
        if self.diff is not None:
            return self.diff.float().reshape(shape)
        if self.up is None and self.down is None:
            return None
        if self.up is None or self.down is None:
            raise ValueError("one of its two matrices is missing")
        up, down = self.up.float().flatten(1), self.down.float()
        rank = down.shape[0]
        if self.mid is None:
            product = up @ down.flatten(1)
        else:  # LoCon: a small convolution between two pointwise ones
            product = torch.einsum("or,rskl,si->oikl", up, self.mid.float(), down.flatten(1))
        scale = 1.0 if self.alpha is None else float(self.alpha) / rank
        return scale * product.reshape(shape)


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file changes, by module."""

    changes: Mapping[Module, Change] = field(default_factory=dict)

    @property
    def parts(self) -> frozenset[Part]:
        """The networks that it changes."""
        return frozenset(part for part, _ in self.changes)


def parse_lora(tensors: Mapping[str, Tensor], alphas: Mapping[Part, float] | None = None) -> LoraFile:
    """A LoRA file's tensors by the modules they change.

    Args:
        tensors: by the file's keys.
        alphas: of networks whose modules have none of their own, see `alphas_of`.

    Raises:
        InfusionError: no LoRA at all, one of a kind that is not read, or a key of no known style.
    """
    changes: dict[Module, Change] = {}
    for key, tensor in tensors.items():
        if key.startswith(_EMBEDDINGS):
            continue
        other = next((name for mark, name in _OTHERS.items() if mark in key), None)
        if other:
            raise InfusionError(f"this is a {other} file ({printable(key)}); plain LoRA and LoCon files are read alone")
        path, piece = _split(key)
        part, path = _part_of(path)
        if piece in ("diff", "diff_b") and path.endswith((".weight", ".bias")):  # ComfyUI's for single parameters
            piece, path = ("diff" if path.endswith(".weight") else "diff_b"), path.rpartition(".")[0]
        change = changes.setdefault((part, module_key(path)), Change())
        setattr(change, piece, tensor)
    if not changes:
        raise InfusionError("there are no LoRA weights in it; give a LoRA file, or a full model as a folder")
    for (part, _), change in changes.items():
        if change.alpha is None and alphas and part in alphas:
            change.alpha = torch.tensor(alphas[part])
    return LoraFile(changes)


def _split(key: str) -> tuple[str, Piece]:
    for pattern, piece in _ENDS:
        if found := pattern.search(key):
            return key[: found.start()], piece
    raise InfusionError(
        f"the key {printable(repr(key))} is none of a LoRA file for Stable Diffusion; give a LoRA file, or a full "
        "model as a folder"
    )


def _part_of(path: str) -> tuple[Part, str]:
    path = path.removeprefix(_PEFT)
    for start, part in PARTS:
        if path.startswith(start):
            return part, path.removeprefix(start).removeprefix(_PEFT)
    return "unet", path


def alphas_of(metadata: Mapping[str, str]) -> dict[Part, float]:
    """Each network's alpha as diffusers notes it in a file's metadata, beside peft's keys.

    Raises:
        InfusionError: see `alpha_of`.
    """
    try:
        told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    found = {}
    for part in NETWORKS if isinstance(told, dict) else ():
        own = {name.removeprefix(f"{part}."): value for name, value in told.items() if name.startswith(f"{part}.")}
        if (alpha := alpha_of(own)) is not None:
            found[part] = alpha
    return found


def alpha_of(config: Mapping[str, Any]) -> float | None:
    """The alpha that a peft adapter's config tells; None if it tells none.

    Raises:
        InfusionError: layers have alphas of their own.
    """
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        raise InfusionError("the adapter's layers have alphas of their own, which are not read; merge it first")
    if not isinstance(alpha, (int, float)):
        return None
    if config.get("use_rslora") and isinstance(rank, (int, float)):  # scaled by alpha / sqrt(rank)
        return float(alpha) * math.sqrt(rank)
    return float(alpha)


def module_key(path: str) -> str:
    """One name for a module, however a file spells its path."""
    key = path.replace(".", "_").removeprefix("text_model_").replace("_processor_", "_")
    if "_to_out" in key:
        key = key.removesuffix("_0")
    for own, clip in (("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")):
        key = key.replace(f"self_attn_{own}", f"self_attn_{clip}")
    return key


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "conv_in": ["input_blocks.0.0"],
    "conv_norm_out": ["out.0"],
    "conv_out": ["out.2"],
    "time_embedding.linear_1": ["time_embed.0"],
    "time_embedding.linear_2": ["time_embed.2"],
    "add_embedding.linear_1": ["label_emb.0.0"],
    "add_embedding.linear_2": ["label_emb.0.2"],
}


def original_paths(path: str, layers_per_block: int) -> list[str]:
    """What a diffusers UNet's module may be called in the original layout, in which some trainers write.

    Args:
        path: of the module in diffusers.
        layers_per_block: residual blocks per level of the down half.
    """
    match = re.fullmatch(
        r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path
    )
    if match is None:
        return _OUTER.get(path, [])
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = _RESNET.get(rest, rest) if kind == "resnets" else rest
    if side == "mid":
        return [f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"]
    number = level * (layers_per_block + 1) + (layers_per_block if kind.endswith("samplers") else index)
    if side == "down":
        inner = "op" if kind == "downsamplers" else rest
        return [f"input_blocks.{number + 1}.{1 if kind == 'attentions' else 0}.{inner}"]
    if kind == "upsamplers":  # it comes after the attention, where there is one
        return [f"output_blocks.{number}.{place}.{rest}" for place in (1, 2)]
    return [f"output_blocks.{number}.{1 if kind == 'attentions' else 0}.{rest}"]
