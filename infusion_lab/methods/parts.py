"""Which parts of a UNet a baseline trains."""

from __future__ import annotations

import re

from torch import nn

from infusion_core.embedded.model import EmbeddedModel

from .method import Part

PARTS: dict[Part, str] = {  # what the names of their modules look like, in full
    "unet": ".*",
    "attention": r".*\.attn[12]\.to_(q|k|v|out\.0)",
    "cross-attention": r".*\.attn2\.to_(q|k|v|out\.0)",
    "keys and values": r".*\.attn2\.to_[kv]",
}


def parameters_of(model: EmbeddedModel, part: Part) -> dict[str, nn.Parameter]:
    """The parameters of a part of a model's UNet, by name."""
    named = model.denoiser.unet.named_parameters()
    return {name: p for name, p in named if re.fullmatch(PARTS[part], name.rpartition(".")[0])}
