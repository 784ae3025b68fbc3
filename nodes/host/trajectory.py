"""Base latent `own`: the base stream follows its own sampling run, which is noted and replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError

TRAJECTORY = "infusion_trajectory"  # in the transformer options of both runs


@dataclass
class Trajectory:
    """What the base stream's own sampling run showed the network, call by call."""

    recording: bool = True
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    next: int = 0

    def follow(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """The base stream's latent at this call: what the network is shown while recording, what it was shown then.

        Raises:
            InfusionError: the sampler chose other noise levels than in the base run.
        """
        if self.recording:
            self.calls.append((latent.clone(), timestep.clone()))
            return latent
        if self.next >= len(self.calls) or not torch.equal(self.calls[self.next][1], timestep):
            raise InfusionError(
                "base latent 'own' needs a sampler with fixed steps and no step cache; this one adapts its steps to "
                "the picture, or a cache skipped some: choose another sampler, remove the cache, or use 'shared'"
            )
        self.next += 1
        return self.calls[self.next - 1][0]


def random_state(device: torch.device) -> tuple[torch.device, list[Tensor]]:
    """The state of the random generators that samplers draw from."""
    return device, [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore(state: tuple[torch.device, list[Tensor]]) -> None:
    """Put random generators back."""
    device, (cpu, *cuda) = state
    torch.set_rng_state(cpu)
    for kept in cuda:
        torch.cuda.set_rng_state(kept, device)


def rewind(guider: Any) -> None:
    """Put the keyframes of LoRA hooks back to the start of the schedule, as the host does once per sampling."""
    hooks = [cond["hooks"] for entries in guider.conds.values() for cond in entries or [] if cond.get("hooks")]
    for group in hooks:
        group.reset()
    if hooks:
        guider.model_patcher.clear_cached_hook_weights()
