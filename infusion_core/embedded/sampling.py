"""DDIM sampling with the two streams, and both sources of the base stream's latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from ..attention import MapsOfRows, Plan
from ..concepts import LARGEST_SCALE, LoadedConcept
from ..denoiser import Conditioning, EncodedPrompt, Named, stack
from ..errors import InfusionError
from ..injection import Injection, inject
from ..noise import bin_of
from ..streams import BaseLatent, base_then_concept
from .unet import UNetDenoiser


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        steps: DDIM steps.
        guidance: classifier-free guidance scale; 1 leaves the unconditional half out.
        base_latent: ``shared``: the base stream sees the concept stream's latent; ``own``: it follows its own
            trajectory from the same noise.
        replace_unconditional: replace the maps of the unconditional half too; matters for ``own`` only.
        compute: type of the network's matrix products (automatic mixed precision); None for that of its weights.
    """

    steps: int = 50
    guidance: float = 8.0
    base_latent: BaseLatent = "shared"
    replace_unconditional: bool = False
    compute: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InfusionError(f"steps must be at least 1, got {self.steps}")
        if not abs(self.guidance) <= LARGEST_SCALE:
            raise InfusionError(f"the guidance must be a number up to {LARGEST_SCALE:g}, got {self.guidance}")
        if self.base_latent not in get_args(BaseLatent):
            raise InfusionError(f"unknown base latent {self.base_latent!r}; choose shared or own")


@dataclass(frozen=True)
class SampleStep:
    """After step `step` of `steps`: the latents, (N, C, H, W)."""

    step: int
    steps: int
    latents: Tensor


Row = tuple[Tensor, Conditioning]  # latents (n, C, H, W) and their n rows of conditioning


@dataclass(frozen=True)
class Moment:
    """One step, number `index` of `steps`: its timestep, the conditioning of both halves, and the concepts whose
    residuals are added."""

    index: int
    steps: int
    t: Tensor
    uncond: Conditioning
    cond: Conditioning
    named: Sequence[Named]


class Sampler:
    """Draws N pictures of one prompt.

    The concept stream attends with the base stream's maps as long as any concept that the prompt names wants it
    (`LoadedConcept.map_window`); from then on no base pass is run.

    Args:
        denoiser: the base model.
        scheduler: a diffusers DDIMScheduler; used for its steps alone.
        prompt: encoded, with the spans of each concept's word.
        negative: conditioning of the unconditional half, as long as the prompt's.
        concepts: made for this base, in the order of the prompt's spans.
        settings: how to sample.

    Raises:
        InfusionError: more steps than the model has noise levels.
    """

    def __init__(
        self,
        denoiser: UNetDenoiser,
        scheduler: Any,
        prompt: EncodedPrompt,
        negative: Conditioning,
        concepts: Sequence[LoadedConcept] = (),
        settings: SampleSettings | None = None,
    ) -> None:
        self.denoiser, self.scheduler, self.settings = denoiser, scheduler, settings or SampleSettings()
        steps, most = self.settings.steps, len(denoiser.sigmas)
        if steps > most:
            raise InfusionError(f"{steps} steps are more than the {most} this model has; ask for fewer")
        self._prompt, self._negative = prompt, negative
        dtype = prompt.conditioning.context.dtype
        self._named = [(concept.to(denoiser.device, dtype), spans) for concept, spans in prompt.named(concepts)]

    @torch.no_grad()
    def run(self, noise: Tensor) -> Iterator[SampleStep]:
        """Sample from unit noise (N, C, H, W), yielding after each step."""
        x = base_x = noise * self.scheduler.init_noise_sigma
        for moment in self.moments(len(noise)):
            if self.settings.base_latent == "own" and self._replaces(moment):
                x, base_x = self._own(x, base_x, moment)
            else:
                x = self.step(x, moment)
            yield SampleStep(moment.index + 1, moment.steps, x)

    def moments(self, count: int) -> Iterator[Moment]:
        """Every step of a run that draws so many pictures."""
        self.scheduler.set_timesteps(self.settings.steps, device=self.denoiser.device)
        times = self.scheduler.timesteps
        cond, uncond = self._prompt.conditioning.repeat(count), self._negative.repeat(count)
        for i, t in enumerate(times):
            done = i / len(times)
            adding = [(concept.scaled(done), spans) for concept, spans in self._named if concept.adds_at(done)]
            yield Moment(i, len(times), t, uncond, cond, adding)

    def rows(self, x: Tensor, moment: Moment) -> list[Row]:
        """A latent (N, C, H, W) with the conditioning of each half that there is; the conditional one comes last."""
        return [(x, moment.uncond), (x, moment.cond)] if self.guided else [(x, moment.cond)]

    def step(self, x: Tensor, step: Moment) -> Tensor:
        """One step with one latent (N, C, H, W): base and concept stream differ in the residual alone."""
        rows = self.rows(x, step)
        if not step.named:  # both streams are the base model
            out = self.predict(rows, step)
        elif not self._replaces(step):
            out = self.predict(rows, step, Plan(injections=self.injections(step, (len(rows) - 1) * len(x), len(x))))
        else:
            base = list(range(len(rows) * len(x)))
            maps = MapsOfRows([*base, *base[-len(x) :]])
            plan = Plan(maps, injections=self.injections(step, len(base), len(x)))
            *out, _, concept = self.predict([*rows, (x, step.cond)], step, plan)
            out.append(concept)
        return self.advance(out, step, x)

    def _replaces(self, step: Moment) -> bool:
        """Whether the concept stream attends with the base stream's maps."""
        return any(concept.map_window.covers(step.index / step.steps) for concept, _ in self._named)

    def _own(self, x: Tensor, base_x: Tensor, step: Moment) -> tuple[Tensor, Tensor]:
        """One step of both trajectories; the base stream's maps come from its own latent."""
        count, supplied = len(x), slice(None)
        base_rows: list[Row] = [(base_x, step.cond)]
        rows: list[Row] = [(x, step.cond)]
        if self.guided:
            base_rows.insert(0, (base_x, step.uncond))
            if self.settings.replace_unconditional:
                rows.insert(0, (x, step.uncond))
            else:  # the unconditional row keeps its own maps, so it may as well run with the base rows
                base_rows.insert(0, (x, step.uncond))
                supplied = slice(2 * count, None)
        injections = self.injections(step, (len(rows) - 1) * count, count)
        first, second = base_then_concept(
            partial(self.predict_rows, base_rows, step), partial(self.predict_rows, rows, step), injections, supplied
        )
        base, out = list(first.chunk(len(base_rows))), list(second.chunk(len(rows)))
        if len(base) == 3:
            out.insert(0, base.pop(0))
        return self.advance(out, step, x), self.advance(base, step, base_x)

    def predict(self, rows: Sequence[Row], step: Moment, plan: Plan | None = None) -> list[Tensor]:
        """One forward pass over groups of rows; one output per group."""
        return list(self.predict_rows(rows, step, plan or Plan()).chunk(len(rows)))

    def predict_rows(self, rows: Sequence[Row], step: Moment, plan: Plan) -> Tensor:
        """One forward pass over groups of rows, their outputs below each other."""
        latents = self.scheduler.scale_model_input(torch.cat([x for x, _ in rows]), step.t)
        compute = self.settings.compute
        with torch.autocast(latents.device.type, compute, enabled=compute is not None):
            return self.denoiser.forward(latents, step.t, stack([c for _, c in rows]), plan).to(latents)

    def injections(self, step: Moment, first: int, count: int) -> list[Injection]:
        """The residuals of this step, for `count` rows from `first` on."""
        sigmas, rows = self.denoiser.sigmas, range(first, first + count)
        sigma = sigmas[int(step.t)][None]
        return [
            inject(concept, rows, [spans] * count, [int(bin_of(sigma, sigmas, concept.residual.bins))] * count,
                   self.denoiser.device)
            for concept, spans in step.named
        ]  # fmt: skip

    def advance(self, out: Sequence[Tensor], step: Moment, x: Tensor) -> Tensor:
        """Guidance, then DDIM."""
        predicted = out[-1] if len(out) == 1 else out[0] + self.settings.guidance * (out[1] - out[0])
        result: Tensor = self.scheduler.step(predicted, step.t, x).prev_sample
        return result

    @property
    def guided(self) -> bool:
        return self.settings.guidance != 1
