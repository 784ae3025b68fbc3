"""The late model's pass that a gradient goes back through: its positive rows alone, compared with the early model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import comfy.samplers
import torch
from torch import Tensor

from ...infusion_core.dreamblend import BlendSettings, descent, map_distance
from ...infusion_core.errors import InfusionError
from ...infusion_core.sites import Site
from .blend_record import Call, in_turn, read
from .blend_sites import BLEND, OTHER_ROWS, pass_of
from .denoiser import differentiable_attention, leave_inference_mode
from .options import with_option
from .patch import ATTACHED

LEFT_OUT = (ATTACHED, "easycache", "lazycache")  # concepts and the host's step caches, by the key of their wrappers
NO_GRADIENT = (
    "a patch of another node on the late MODEL lets no gradient through; choose the mode 'replacement', or connect the "
    "MODEL from in front of that node"
)


def move_of(
    settings: BlendSettings, guider: Any, call: Call, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any]
) -> Tensor:
    """What one step down the gradient adds to the late model's latent (B, C, H, W), in the host's scale.

    The step is taken in the variance-preserving scale, which `alpha` is meant in.

    Raises:
        InfusionError: something on the way lets no gradient through, or the two models run different rows.
    """
    leave_inference_mode(guider.model_patcher.model.diffusion_model)
    scale = math.sqrt(1 + float(timestep.max()) ** 2)

    def distance(at: Tensor) -> Tensor:
        return _distance(settings, guider, call, at * scale, timestep.clone(), model_options)

    return -scale * descent(x / scale, distance, settings.alpha, settings.normalise)


def _distance(
    settings: BlendSettings, guider: Any, call: Call, x: Tensor, timestep: Tensor, model_options: Mapping[str, Any]
) -> Tensor:
    """How far the late model's maps are from the early one's, per picture, (B,)."""
    total, take = [x.new_zeros(len(x))], in_turn(call)

    def compare(site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> None:
        kept = take((site.name, number), uuid)
        if kept is None:
            raise InfusionError(OTHER_ROWS)
        found = map_distance(query, key, read(kept[0], query), read(kept[1], key), settings.distance)
        if len(found) % len(x):
            raise InfusionError("another node draws the batch in parts (context windows); draw fewer pictures at once")
        total.append(found.reshape(-1, len(x)).mean(0))  # tiles of a picture are parts of it

    options = with_option(_plain(model_options), BLEND, pass_of(guider, len(x), compare))
    try:
        comfy.samplers.calc_cond_batch(
            guider.inner_model, [constant_controls(guider.conds["positive"])], x, timestep, options
        )
    except RuntimeError as error:
        if "nference" not in str(error):
            raise
        raise InfusionError(NO_GRADIENT) from error
    distance = torch.stack(total).sum(0)
    if not distance.requires_grad:
        raise InfusionError(NO_GRADIENT)
    return distance


def _plain(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a pass of the network as it is: no concepts, no step cache, one GPU, attention that has a backward."""
    plain = {key: value for key, value in model_options.items() if key != "multigpu_clones"}
    options = {k: v for k, v in plain["transformer_options"].items() if k not in LEFT_OUT}
    wrappers = options.get("wrappers", {})
    options["wrappers"] = {
        kind: {key: found for key, found in by_key.items() if key not in LEFT_OUT} for kind, by_key in wrappers.items()
    }
    patches = options.get("patches", {})
    # ControlNets add to skips in place, which are what backward reads.
    skips = [*patches.get("input_block_patch_after_skip", ()), lambda h, _: h.clone()]
    options["patches"] = {**patches, "input_block_patch_after_skip": skips}
    options["optimized_attention_override"] = differentiable_attention
    return {**plain, "transformer_options": options}


@dataclass(frozen=True)
class _Constant:
    """A ControlNet whose output no gradient goes through."""

    control: Any

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.control.get_control(x.detach(), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control, name)


def constant_controls(conds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conditionings whose ControlNets are constants for the gradient."""
    return [{**cond, "control": _Constant(cond["control"])} if cond.get("control") else cond for cond in conds]
