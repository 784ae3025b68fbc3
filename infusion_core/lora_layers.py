"""Which layers a LoRA may change, and what kohya's trainer calls them. Paths are diffusers' and transformers'."""

from __future__ import annotations

from typing import Literal

Targets = Literal["cross-attention", "attention", "transformer"]
UNET, TEXT = "lora_unet_", "lora_te"  # how names begin
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_ENDS: dict[Targets, tuple[str, ...]] = {"cross-attention": tuple(f".attn2.{end}" for end in _PROJECTIONS)}
_ENDS["attention"] = (*_ENDS["cross-attention"], *(f".attn1.{end}" for end in _PROJECTIONS))
_ENDS["transformer"] = (*_ENDS["attention"], ".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out")
_TEXT_ENDS = tuple(f".{end}" for end in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))


def unet_layer(path: str, targets: Targets) -> str | None:
    """The name of a layer of the UNet; None if it is no target.

    Args:
        path: as diffusers has it, ``down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``.
        targets: what is trained.
    """
    return f"{UNET}{path.replace('.', '_')}" if path.endswith(_ENDS[targets]) else None


def text_layer(path: str, number: int, encoders: int) -> str | None:
    """The name of a layer of a text encoder; None if it is no target.

    Args:
        path: as transformers has it, with or without ``text_model.`` in front, ``encoder.layers.0.self_attn.q_proj``.
        number: of the encoder, from 0.
        encoders: that the model has.
    """
    if not path.endswith(_TEXT_ENDS):
        return None
    which = str(number + 1) if encoders > 1 else ""
    return f"{TEXT}{which}_text_model_{path.removeprefix('text_model.').replace('.', '_')}"
