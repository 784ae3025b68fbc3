"""Everything a resumed run needs beside its inputs, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import write_atomic
from ..errors import InfusionError
from ..tensor_file import UNREADABLE, read_tensors, tensor_bytes

FORMAT = "infusion-training"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        parameters: what is trained, by name.
        mean, square: Adam's moments by name; a parameter that never had a gradient has none.
        count: optimizer steps of each parameter by name, (); Adam corrects its moments by it.
        extra: the objective's own, see `Objective.extra_state`.
    """

    step: int
    parameters: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    count: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] = field(default_factory=dict)


GROUPS = ("parameters", "mean", "square", "count", "extra")


def save_state(path: Path | str, state: TrainState) -> None:
    """Write a training state atomically.

    Raises:
        InfusionError: the disk is full.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group in GROUPS
        for name, tensor in getattr(state, group).items()
    }
    write_atomic(Path(path), tensor_bytes(tensors, {"format": FORMAT, "step": str(state.step)}))


def load_state(path: Path | str) -> TrainState:
    """Read a training state.

    Raises:
        InfusionError: the file is missing, damaged or something else.
    """
    try:
        tensors, metadata = read_tensors(Path(path).read_bytes())
        if metadata.get("format") != FORMAT:
            raise ValueError("it is something else")
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        for key, tensor in tensors.items():
            group, name = key.split("/", 1)
            groups[group][name] = tensor
        return TrainState(int(metadata["step"]), **groups)
    except (OSError, *UNREADABLE) as error:
        raise InfusionError(
            f"{path} is not a training state Infusion can read ({error}); train from the start"
        ) from error


def adam_state(state: TrainState, name: str, like: Tensor) -> dict[str, Tensor]:
    """What AdamW keeps of one parameter, (empty if it never had a gradient)."""
    if name not in state.mean:
        return {}
    return {
        "step": state.count[name].clone().to(torch.float32),
        "exp_avg": state.mean[name].to(like).clone(),
        "exp_avg_sq": state.square[name].to(like).clone(),
    }
