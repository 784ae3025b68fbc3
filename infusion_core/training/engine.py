"""The one training loop. What is trained, and by which losses, is an objective's business."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Generator, Tensor

from ..errors import InfusionError
from ..noise import seeded
from ..schedule import rate_at
from .objective import Learned, Objective
from .settings import TrainSettings
from .state import TrainState, adam_state

# Gradients pass through half-precision networks, where they would underflow; a power of two changes no bit elsewhere.
LOSS_SCALE = 1024.0
SEEDS_APART = 1_000_003  # between the random choices of one seed and the next
VALIDATION = 999_331  # the choices of validation, beyond those of any step


NEEDS_LESS = (
    "What needs less, the cheapest first: half the batch size with twice the accumulation; checkpointing; "
    "a lower resolution"
)
_SMALLER = f"out of memory in step {{}}. {NEEDS_LESS}. What was written so far is kept"


class DivergedError(InfusionError):
    """Training came to numbers that are not finite."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `validation_loss` is None except at snapshots and at the last step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_loss: float | None


class Trainer(Generic[Learned]):
    """Minimises an objective.

    Args:
        objective: what is trained, and on what.
        settings: how to train.
        state: of an earlier run with the same objective and settings; goes on where it stopped.

    Attributes:
        validated: losses that the last `validation_loss` is the mean of; None before.

    Raises:
        InfusionError: the state is of another objective.
    """

    validated: Tensor | None = None

    def __init__(self, objective: Objective[Learned], settings: TrainSettings, state: TrainState | None = None) -> None:
        self.objective, self.settings = objective, settings
        groups = objective.groups()
        self._parameters = {name: tensor for group in groups for name, tensor in group.tensors.items()}
        self._rates = [group.rate for group in groups]
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": list(group.tensors.values()),
                    "weight_decay": settings.weight_decay if group.weight_decay is None else group.weight_decay,
                }
                for group in groups
            ],
            lr=settings.learning_rate,
        )
        self.step = 0
        if state is not None:
            self.resume(state)

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, yielding after each. Stop iterating whenever you like; `learned` is always usable.

        Raises:
            torch.cuda.OutOfMemoryError: says what needs less.
            DivergedError: the loss or its gradient is no longer a finite number; says what to do.
        """
        settings = self.settings
        while self.step < settings.steps:
            rate = rate_at(self.step, settings.steps, settings.learning_rate, settings.schedule, settings.warmup_steps)
            for group, scale in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * scale
            try:
                loss = self._gradients(seeded(self._seed(settings.first_step + self.step)))
            except torch.cuda.OutOfMemoryError as error:  # of the same kind again: hosts tidy up after it
                raise torch.cuda.OutOfMemoryError(_SMALLER.format(self.step + 1)) from error
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            self.objective.after_step()
            validated = self.validation_loss() if settings.due(self.step) else None
            yield StepReport(self.step, settings.steps, loss, rate, validated)

    def learned(self) -> Learned:
        """What has been learned so far."""
        return self.objective.learned()

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Mean loss over draws that are the same at every call; None where the settings want no validation."""
        if not self.settings.validation_draws:
            return None
        self.validated = self.validation_losses()
        return self.validated.mean().item()

    @torch.no_grad()
    def validation_losses(self) -> Tensor:
        """The loss of each of these draws, (draws,), or of each for every concept; levels of noise ascend."""
        return self.objective.validation(self.settings.validation_draws, self._seed(VALIDATION))

    def state(self) -> TrainState:
        """What `Trainer(..., state=...)` needs to go on bit by bit."""
        kept = {name: self._optimizer.state.get(tensor, {}) for name, tensor in self._parameters.items()}
        moments = {name: state for name, state in kept.items() if state}
        return TrainState(
            self.step,
            {name: tensor.detach().clone() for name, tensor in self._parameters.items()},
            {name: state["exp_avg"].clone() for name, state in moments.items()},
            {name: state["exp_avg_sq"].clone() for name, state in moments.items()},
            {name: state["step"].clone() for name, state in moments.items()},
            self.objective.extra_state(),
        )

    def resume(self, state: TrainState) -> None:
        """Go on where an earlier run with the same objective and settings stopped.

        Raises:
            InfusionError: the state is of another objective.
        """
        if {k: v.shape for k, v in state.parameters.items()} != {k: v.shape for k, v in self._parameters.items()}:
            raise InfusionError("the saved training state is of another layout or model; start without it")
        self.step = state.step
        with torch.no_grad():
            for name, tensor in self._parameters.items():
                tensor.copy_(state.parameters[name])
                self._optimizer.state[tensor] = adam_state(state, name, tensor)
        self.objective.restore(state.extra)

    def _gradients(self, generator: Generator) -> float:
        """Gather the gradient of one step, clipped, in the parameters; returns the loss."""
        total = 0.0
        for _ in range(self.settings.accumulation):
            loss = sum_of_means(self.objective.losses(generator)) / self.settings.accumulation
            if not torch.isfinite(loss):
                raise DivergedError(f"the loss is {loss.item()} at step {self.step + 1}; {self._remedy()}")
            (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        for gradient in gradients:
            gradient /= LOSS_SCALE
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.settings.clip_norm or math.inf)
        if not norm.isfinite():
            raise DivergedError(
                f"the gradient is not finite at step {self.step + 1}, though the loss is; half precision overflows in "
                "this model: run it in bfloat16 or full precision"
            )
        return total

    def _remedy(self) -> str:
        """Training cannot have spoilt the first loss; later ones it has."""
        if self.step == 0:
            return (
                "nothing has been learned yet, so the model itself gives it on these pictures: check that it draws "
                "pictures, and run it in bfloat16 or full precision if half precision overflows"
            )
        return "lower the learning rate"

    def _seed(self, number: int) -> int:
        return self.settings.seed * SEEDS_APART + number


def sum_of_means(losses: Mapping[str, Tensor]) -> Tensor:
    """The number that is minimised: the mean over samples of every loss, added up."""
    return torch.stack([loss.mean() for loss in losses.values()]).sum()
