"""What Infusion needs to know of a host's MODEL: its sites, its base, whether it can be patched at all."""

from __future__ import annotations

import re
from typing import Any

import comfy.model_base

from ...infusion_core.errors import InfusionError
from ...infusion_core.noise import Prediction
from ...infusion_core.residuals import Base, architecture_name
from ...infusion_core.sites import Site

_LAYER = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.attn2$")


def base_of(model: Any) -> Base:
    """The base model behind a MODEL, as concepts know it.

    Raises:
        InfusionError: not a cross-attention UNet with epsilon or v-prediction.
    """
    inner = model.model
    kind = type(inner).__name__
    unet: Any = getattr(inner, "diffusion_model", None)
    config = inner.model_config.unet_config
    layers = config.get("num_res_blocks")
    if not hasattr(unet, "input_blocks") or not isinstance(layers, list) or not config.get("context_dim"):
        raise InfusionError(
            f"{kind} has no UNet with cross-attention, so Infusion cannot patch it; "
            "use a Stable Diffusion 1.x, 2.x or XL checkpoint"
        )
    if getattr(inner, "concat_keys", ()) or config.get("in_channels", 4) != 4:
        raise InfusionError(f"{kind} takes more than a latent (inpainting or edit model); use a plain checkpoint")
    sites = tuple(
        site for name, module in unet.named_modules() if (site := _site(name, module, layers[0] + 1)) is not None
    )
    if not sites:
        raise InfusionError(f"{kind} has no cross-attention layers; use a Stable Diffusion 1.x, 2.x or XL checkpoint")
    return Base(architecture_name(config["context_dim"]), config["context_dim"], _prediction(inner), sites)


def _prediction(inner: Any) -> Prediction:
    if inner.model_type == comfy.model_base.ModelType.EPS:
        return "epsilon"
    if inner.model_type == comfy.model_base.ModelType.V_PREDICTION:
        return "v_prediction"
    raise InfusionError(
        f"{type(inner).__name__} is a {inner.model_type.name} model; Infusion knows epsilon and v-prediction ones, "
        "use a Stable Diffusion 1.x, 2.x or XL checkpoint"
    )


def _site(path: str, module: Any, blocks_per_level: int) -> Site | None:
    match = _LAYER.search(path)
    if match is None:
        return None
    side, number, depth = match[1], int(match[2]), match[3]
    if side == "middle":
        return Site(f"middle.0.{depth}", "mid", module.heads * module.dim_head)
    level = (number - 1) // blocks_per_level if side == "input" else number // blocks_per_level
    block = f"{'down' if side == 'input' else 'up'}.{level}"
    return Site(f"{side}.{number}.{depth}", block, module.heads * module.dim_head)
