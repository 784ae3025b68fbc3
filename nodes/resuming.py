"""Whether a run is the one that was interrupted: the same inputs, by what they are and by what they do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor

from ..infusion_core.training.engine import Trainer

PROBES, PROBE_SEED = 2, 271_828
CLOSE = 1e-3  # relative: half precision differs by less from run to run


@dataclass(frozen=True)
class Given:
    """What a run was given.

    Attributes:
        told: what decides what is learned, as JSON has it: settings, words, hashes of pictures.
        probes: losses before the first step. They tell networks, weights and LoRAs apart by what they do, wherever the
            host keeps them.
    """

    told: Mapping[str, Any]
    probes: Sequence[float]

    @classmethod
    def of(cls, trainer: Trainer[Any], told: Mapping[str, Any]) -> Given:
        """What a run is given that has not taken a step."""
        with torch.no_grad():
            return cls(json.loads(json.dumps(told)), trainer.objective.validation(PROBES, PROBE_SEED).tolist())

    def is_of(self, kept: Mapping[str, Any]) -> bool:
        """Whether an interrupted run that kept this was given the same."""
        return kept.get("told") == self.told and self.is_on(kept)

    def is_on(self, kept: Mapping[str, Any]) -> bool:
        """Whether what kept this was given the same networks, weights and LoRAs."""
        probes = kept.get("probes", ())
        return len(probes) == len(self.probes) and all(
            isclose(one, other, rel_tol=CLOSE) for one, other in zip(probes, self.probes, strict=True)
        )


def hash_of(pictures: Tensor | Sequence[Tensor] | None) -> str | None:
    """What pictures or masks are: every shape and every number; None of none."""
    if pictures is None:
        return None
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(tuple(picture.shape)).encode())
        digest.update(picture.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
