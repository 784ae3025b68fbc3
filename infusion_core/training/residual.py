"""Learning a concept: plain denoising loss on the concept stream, gradients into the residuals alone (eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from . import noise as noise_levels
from .attention import Maps, Plan
from .denoiser import Denoiser, EncodedPrompt, stack
from .errors import InfusionError
from .residuals import ConceptResidual, Infusion, Layout, infuse, zero_residual

# Gradients pass through half-precision networks, where they would underflow; a power of two changes no bit elsewhere.
LOSS_SCALE = 1024.0

Schedule = Literal["cosine", "constant"]
Weighting = Literal["uniform", "velocity"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Steps and batch size are the paper's; the rest was chosen on TinyWorld (docs/tinyworld-study.md).

    Attributes:
        steps: optimizer steps.
        batch_size: samples per pass.
        accumulation: passes per optimizer step.
        learning_rate: of AdamW; the paper has 0.01, constant.
        schedule: ``cosine`` falls to a tenth of the rate over the run, ``constant`` keeps it.
        layout: where the residual lives, see `ConceptResidual`.
        bins: timestep bins, each with its own residual.
        replace_maps: the concept stream attends with the base stream's maps.
        weighting: of the loss over noise levels; ``uniform`` as in the paper, ``velocity`` weighs
            ``min(1 + sigma^2, 8)``, which attends more to the high noise where appearance is decided.
        snapshot_every: steps between snapshots; each reports the validation loss.
        validation_draws: fixed (image, noise, noise level) draws the validation loss is the mean of.
        seed: of every random choice; step i draws from (seed, i), so a resumed run repeats bit by bit.
    """

    steps: int = 400
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 0.05
    schedule: Schedule = "cosine"
    layout: Layout = "block"
    bins: int = 1
    replace_maps: bool = True
    weighting: Weighting = "velocity"
    snapshot_every: int = 100
    validation_draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "bins", "snapshot_every", "validation_draws"):
            if getattr(self, name) < 1:
                raise InfusionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise InfusionError(f"the learning rate must be a positive number, got {self.learning_rate}")


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `validation_loss` is None except at snapshots and at the last step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_loss: float | None


@dataclass(frozen=True)
class TrainState:
    """Everything a resumed run needs beside its inputs: the step and, by place, residuals and Adam's moments."""

    step: int
    residual: dict[str, Tensor]
    mean: dict[str, Tensor]
    square: dict[str, Tensor]


class Trainer:
    """Trains one concept.

    Args:
        denoiser: the frozen base model.
        latents: encoded images, (N, C, H, W), on the denoiser's device.
        prompts: encoded captions, each with the spans of the word as its only concept; all of one context length.
        word: the concept's word.
        settings: how to train.
        start: a concept to continue from; its layout and bins must be the settings'.
        state: of an earlier run with the same inputs; goes on where it stopped.
        masks: weight of the loss over each image, (N, 1, H, W), such as where the subject is; None for evenly.

    Raises:
        InfusionError: no images, no caption that holds the word, or `start` does not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        prompts: Sequence[EncodedPrompt],
        word: str,
        settings: TrainSettings,
        start: ConceptResidual | None = None,
        state: TrainState | None = None,
        masks: Tensor | None = None,
    ) -> None:
        if not len(latents):
            raise InfusionError("no images to learn from; give at least one")
        if not prompts or not all(p.spans and p.spans[0] for p in prompts):
            raise InfusionError(f"a caption does not hold the word {word!r}; check the caption templates")
        self.denoiser, self.latents, self.prompts, self.settings = denoiser, latents, prompts, settings
        self._masks = None if masks is None else masks / masks.mean(dim=(1, 2, 3), keepdim=True)
        tokens = len(prompts[0].spans[0][0])
        blank = zero_residual(denoiser.base, word, settings.layout, settings.bins, tokens)
        if start is not None:
            start.check_fits(denoiser.base)
            if {k: v.shape for k, v in start.tensors.items()} != {k: v.shape for k, v in blank.tensors.items()}:
                raise InfusionError(
                    f"the concept to continue from has layout {start.layout}, {start.bins} bins and {start.tokens} "
                    f"tokens, not {blank.layout}, {blank.bins} and {blank.tokens}; set the same layout, bins and word"
                )
            blank = replace(blank, tensors=start.tensors)
        self.residual = blank.to(denoiser.device, torch.float32)
        self.residual = replace(
            self.residual,
            tensors={k: v.detach().clone().requires_grad_() for k, v in self.residual.tensors.items()},
        )
        self._optimizer = torch.optim.AdamW(
            list(self.residual.tensors.values()), lr=settings.learning_rate, weight_decay=0.0
        )
        self.step = 0
        if state is not None:
            self._restore(state)

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, yielding after each. Stop iterating whenever you like; `concept` is always usable.

        Raises:
            InfusionError: the loss is no longer a finite number.
        """
        settings = self.settings
        while self.step < settings.steps:
            rate = self._rate(self.step)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
            total = 0.0
            for _ in range(settings.accumulation):
                loss = self._loss(*self._draw(generator)) / settings.accumulation
                if not torch.isfinite(loss):
                    raise InfusionError(f"the loss is {loss.item()} at step {self.step + 1}; lower the learning rate")
                (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            for tensor in self.residual.tensors.values():
                if tensor.grad is not None:
                    tensor.grad /= LOSS_SCALE
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            due = self.step % settings.snapshot_every == 0 or self.step == settings.steps
            yield StepReport(self.step, settings.steps, total, rate, self.validation_loss() if due else None)

    def concept(self) -> ConceptResidual:
        """The concept as learned so far, detached, on the CPU."""
        return replace(self.residual, tensors={k: v.detach().cpu().clone() for k, v in self.residual.tensors.items()})

    def state(self) -> TrainState:
        """What `Trainer(..., state=...)` needs to go on bit by bit."""
        moments = {k: self._optimizer.state.get(v, {}) for k, v in self.residual.tensors.items()}
        return TrainState(
            self.step,
            {k: v.detach().clone() for k, v in self.residual.tensors.items()},
            {k: m["exp_avg"].clone() for k, m in moments.items() if m},
            {k: m["exp_avg_sq"].clone() for k, m in moments.items() if m},
        )

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean unweighted loss over draws that are the same at every call."""
        draws = self.settings.validation_draws
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + 999_331)
        steps = len(self.denoiser.sigmas)
        times = ((torch.arange(draws) + 0.5) * steps / draws).long()
        eps = torch.randn(draws, *self.latents.shape[1:], generator=generator)
        losses = []
        for part in torch.split(torch.arange(draws), self.settings.batch_size):
            picks, texts = (part % len(self.latents)).tolist(), (part % len(self.prompts)).tolist()
            losses.append(self._errors(picks, texts, times[part], eps[part]))
        return torch.cat(losses).mean().item()

    def _draw(self, generator: torch.Generator) -> tuple[list[int], list[int], Tensor, Tensor]:
        """Images, captions, training timesteps and noise of one pass."""
        size = self.settings.batch_size
        picks = torch.randint(len(self.latents), (size,), generator=generator).tolist()
        texts = torch.randint(len(self.prompts), (size,), generator=generator).tolist()
        # One draw per slice of [0, T): still uniform, with less variance from step to step.
        spread = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        times = (spread * len(self.denoiser.sigmas)).long()
        return picks, texts, times, torch.randn(size, *self.latents.shape[1:], generator=generator)

    def _loss(self, picks: list[int], texts: list[int], times: Tensor, eps: Tensor) -> Tensor:
        errors = self._errors(picks, texts, times, eps)
        if self.settings.weighting == "uniform":
            return errors.mean()
        weights = (1 + self.denoiser.sigmas.square()).clamp(max=8.0)
        weights = weights / weights.mean()
        return (errors * weights[times].to(errors)).mean()

    def _errors(self, picks: list[int], texts: list[int], times: Tensor, eps: Tensor) -> Tensor:
        """Squared error of the concept stream per sample, (B,), averaged over the latent."""
        denoiser = self.denoiser
        sigma = denoiser.sigmas[times].to(denoiser.device)
        latent, eps = self.latents[picks], eps.to(self.latents)
        noised = latent + sigma.to(latent).reshape(-1, 1, 1, 1) * eps
        conditioning = stack([self.prompts[i].conditioning for i in texts])
        maps: Maps | None = None
        if self.settings.replace_maps:
            maps = {}
            with torch.no_grad():  # the base stream does not depend on the residual
                denoiser.predict(noised, sigma, conditioning, Plan(record=maps))
        output = denoiser.predict(
            noised, sigma, conditioning, Plan(supply=maps, infusions=[self._infuse(texts, sigma)])
        )
        wanted = noise_levels.target(denoiser.prediction, latent, eps, sigma)
        errors = (output.float() - wanted.float()).square()
        if self._masks is not None:
            errors = errors * self._masks[picks]
        return errors.mean(dim=(1, 2, 3))

    def _infuse(self, texts: list[int], sigma: Tensor) -> Infusion:
        bins = noise_levels.bin_of(sigma, self.denoiser.sigmas.to(sigma), self.settings.bins).tolist()
        spans = [self.prompts[i].spans[0] for i in texts]
        return infuse(self.residual, range(len(texts)), spans, bins, device=self.denoiser.device)

    def _rate(self, step: int) -> float:
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        done = step / max(1, self.settings.steps - 1)
        return self.settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def _restore(self, state: TrainState) -> None:
        if set(state.residual) != set(self.residual.tensors):
            raise InfusionError("the saved training state is of another layout or model; start without it")
        self.step = state.step
        with torch.no_grad():
            for name, tensor in self.residual.tensors.items():
                tensor.copy_(state.residual[name])
                if name in state.mean:
                    self._optimizer.state[tensor] = {
                        "step": torch.tensor(float(state.step)),
                        "exp_avg": state.mean[name].to(tensor).clone(),
                        "exp_avg_sq": state.square[name].to(tensor).clone(),
                    }
