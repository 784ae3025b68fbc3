"""Several concepts in one run: their rows share every pass through the frozen network, their gradients do not mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from ..errors import InfusionError
from ..residuals import ConceptResidual
from .engine import StepReport, Trainer
from .looks import errors_of
from .objective import ParameterGroup
from .residual import ResidualObjective
from .shapes import ShapedObjective
from .state import TrainState

_JOIN = "/"  # between the number of a concept and what is its own


class JointObjective:
    """The residuals of several concepts, each of which learns exactly what it would learn alone.

    Every concept draws from a generator of its own, in the state that a run of it alone would have. Minimised is
    the sum of their losses, and AdamW looks at each number by itself.

    Args:
        members: of one denoiser and one set of settings; latents of one size, captions of one length.

    Attributes:
        last: loss of each concept in the last step.
        validated: mean validation loss of each concept, as it was last measured; empty before.

    Raises:
        InfusionError: no concept, or they do not go together.
    """

    def __init__(self, members: Sequence[ResidualObjective]) -> None:
        if not members:
            raise InfusionError("no concepts to train; give at least one")
        if any(isinstance(member, ShapedObjective) for member in members):
            raise InfusionError("concepts that are trained together need photos of one size; let none keep its shape")
        first = members[0]
        for member in members:
            if member.denoiser is not first.denoiser or member.settings != first.settings:
                raise InfusionError("concepts that are trained together need one model and the same settings")
            if member.shown.latents.shape[3:] != first.shown.latents.shape[3:]:
                raise InfusionError("concepts that are trained together need photos of one size")
            if member.context_length != first.context_length:
                raise InfusionError("concepts that are trained together need captions of one length in 77-token chunks")
        if first.settings.clip_norm is not None:
            raise InfusionError("concepts that are trained together cannot clip the norm of all their gradients")
        self.members = tuple(members)
        self.last = [0.0] * len(members)
        self.validated: list[float] = []
        self._step: Generator | None = None
        self._generators: list[Generator] = []

    def groups(self) -> list[ParameterGroup]:
        """Those of all concepts."""
        return [
            replace(group, tensors={f"{number}{_JOIN}{name}": tensor for name, tensor in group.tensors.items()})
            for number, member in enumerate(self.members)
            for group in member.groups()
        ]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The loss of each concept's batch."""
        if generator is not self._step:  # the first pass of a step; further ones draw on
            self._step, state = generator, generator.get_state()
            self._generators = [torch.Generator().set_state(state) for _ in self.members]
            self.last = [0.0] * len(self.members)
        first = self.members[0]
        looks = [member.look(own) for member, own in zip(self.members, self._generators, strict=True)]
        errors = errors_of(first.denoiser, looks, first.settings.map_window, first.compares)
        losses = [m.weighed(look.times, *found) for m, look, found in zip(self.members, looks, errors, strict=True)]
        means = (torch.stack([loss.detach().mean() for loss in losses]) / first.settings.accumulation).tolist()
        self.last = [before + mean for before, mean in zip(self.last, means, strict=True)]
        return {f"{number}{_JOIN}denoising": loss for number, loss in enumerate(losses)}

    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted losses of every concept, (concepts x draws,)."""
        found = [member.validation(draws, seed) for member in self.members]
        self.validated = [losses.mean().item() for losses in found]
        return torch.cat(found)

    def reports(self, report: StepReport) -> list[StepReport]:
        """What a step of all did, of each concept."""
        validated = [None] * len(self.members) if report.validation_loss is None else self.validated
        return [
            replace(report, loss=loss, validation_loss=validation)
            for loss, validation in zip(self.last, validated, strict=True)
        ]

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> list[ConceptResidual]:
        """The concepts as learned so far, in order."""
        return [member.learned() for member in self.members]

    def extra_state(self) -> dict[str, Tensor]:
        """That of all concepts."""
        return {
            f"{number}{_JOIN}{name}": tensor
            for number, member in enumerate(self.members)
            for name, tensor in member.extra_state().items()
        }

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Take it back."""
        for number, member in enumerate(self.members):
            start = f"{number}{_JOIN}"
            member.restore({k.removeprefix(start): v for k, v in extra.items() if k.startswith(start)})


def joint_trainer(
    members: Sequence[ResidualObjective], state: TrainState | None = None
) -> Trainer[list[ConceptResidual]]:
    """The engine on a `JointObjective`; `state` as in `Trainer`."""
    objective = JointObjective(members)
    return Trainer(objective, objective.members[0].settings, state)
