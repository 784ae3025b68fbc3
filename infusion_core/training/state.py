"""Everything a resumed run needs beside its inputs, and its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import write_atomic
from ..errors import InfusionError
from ..tensor_file import UNREADABLE, read_tensors, tensor_bytes, with_metadata

FORMAT = "infusion-training"
VERSION = "2"
HASH = "sha256"  # of the file without this entry


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        parameters: what is trained, by name.
        mean, square: Adam's moments by name; a parameter that never had a gradient has none.
        count: optimizer steps of each parameter by name, (); Adam corrects its moments by it.
        extra: the objective's own, see `Objective.extra_state`.
        told: what a door keeps with it, such as what the run was given and its losses so far; anything JSON can hold.
    """

    step: int
    parameters: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    count: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


GROUPS = ("parameters", "mean", "square", "count", "extra")


def save_state(path: Path | str, state: TrainState) -> None:
    """Write a training state: one file, atomically, with a hash of all it holds.

    Raises:
        InfusionError: the disk is full.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group in GROUPS
        for name, tensor in getattr(state, group).items()
    }
    told = json.dumps(state.told, sort_keys=True)
    metadata = {"format": FORMAT, "format_version": VERSION, "step": str(state.step), "told": told}
    data = tensor_bytes(tensors, metadata)
    write_atomic(Path(path), with_metadata(data, {**metadata, HASH: hashlib.sha256(data).hexdigest()}))


def load_state(path: Path | str) -> TrainState:
    """Read a training state.

    Raises:
        InfusionError: the file is missing, damaged or something else.
    """
    try:
        return _parse(Path(path).read_bytes())
    except (OSError, RecursionError, AttributeError, *UNREADABLE) as error:
        raise InfusionError(
            f"{path} is not a training state Infusion can read ({error}); train from the start, without --resume"
        ) from error


def _parse(data: bytes) -> TrainState:
    tensors, metadata = read_tensors(data)
    if metadata.get("format") != FORMAT:
        raise ValueError("it is something else")
    if metadata.get("format_version") != VERSION:
        raise ValueError("another version of Infusion wrote it")
    told = metadata.pop(HASH, None)
    if told != hashlib.sha256(with_metadata(data, metadata)).hexdigest():
        raise ValueError("it is damaged")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for key, tensor in tensors.items():
        group, name = key.split("/", 1)
        groups[group][name] = tensor
    return TrainState(int(metadata["step"]), **groups, told=json.loads(metadata["told"]))


def adam_state(state: TrainState, name: str, like: Tensor) -> dict[str, Tensor]:
    """What AdamW keeps of one parameter, (empty if it never had a gradient)."""
    if name not in state.mean:
        return {}
    return {
        "step": state.count[name].clone().to(torch.float32),
        "exp_avg": state.mean[name].to(like).clone(),
        "exp_avg_sq": state.square[name].to(like).clone(),
    }
