"""Latent Fisher divergence: how far a customised model's noise predictions are from the base model's on prompts that
are not about its concept (Infusion, arXiv 2404.14007, eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from ..concepts import LoadedConcept
from ..denoiser import Denoiser, EncodedPrompt
from ..errors import InfusionError
from ..injection import inject
from ..noise import as_epsilon, bin_of, seeded, share_done, stratified_times
from ..streams import by_maps, concept_stream
from .interval import Interval, bootstrap_interval

GROUP = 8  # neighbouring timesteps that the interval takes for alike


class NoisePredictor(Protocol):
    """A model, base or customised, with the prompts it has encoded."""

    def __call__(self, noised: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        """The noise the model sees, epsilon whatever the network says, (R, C, H, W).

        Args:
            noised: ``latent + sigma * noise``, (R, C, H, W).
            sigma: noise level of each row, (R,).
            prompt: which of the prompts all rows are about.
        """
        ...


@dataclass(frozen=True)
class DenoiserPredictor:
    """A `Denoiser` as `NoisePredictor`, alone or with concepts at work.

    A prompt that does not hold a concept's word leaves nothing to infuse: its pass is the unpatched model's, and its
    divergence from the model without concepts is exactly 0.

    Attributes:
        denoiser: the network.
        prompts: each with the spans of every concept's word.
        concepts: made for this base, in the order of the prompts' spans.
    """

    denoiser: Denoiser
    prompts: Sequence[EncodedPrompt]
    concepts: Sequence[LoadedConcept] = ()

    @torch.no_grad()
    def __call__(self, noised: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        denoiser, sigma = self.denoiser, sigma.to(self.denoiser.device)
        encoded = self.prompts[prompt]
        noised = noised.to(denoiser.device, encoded.conditioning.context.dtype)
        named = encoded.named(self._placed) if self.concepts else []
        levels = denoiser.sigmas.cpu()
        shares = share_done(sigma.cpu(), levels).tolist()

        def predicted(rows: list[int], replaced: bool) -> Tensor:
            seen, count = sigma[rows], len(rows)
            injections = []
            for concept, spans in named:
                bins = bin_of(seen.cpu(), levels, concept.residual.bins).tolist()
                injections.append(inject(concept, range(count), [spans] * count, bins, denoiser.device))
            predict = partial(denoiser.predict, noised[rows], seen, encoded.conditioning.repeat(count))
            return concept_stream(predict, injections, replaced)

        output = by_maps([any(c.map_window.covers(share) for c, _ in named) for share in shares], predicted)
        return as_epsilon(denoiser.prediction, output.float(), noised.float(), sigma)

    @cached_property
    def _placed(self) -> list[LoadedConcept]:
        """The concepts where the network computes, in its precision."""
        return [c.to(self.denoiser.device, self.prompts[0].conditioning.context.dtype) for c in self.concepts]


@dataclass(frozen=True)
class Divergence:
    """What `fisher_divergence` found.

    Attributes:
        interval: mean over the draws and its 95% interval.
        values: per draw, half the squared norm of the difference, summed over the latent, (N,).
        times: training timestep of each draw, ascending, (N,).
        prompts: prompt of each draw, (N,).
        elements: numbers in one latent.
    """

    interval: Interval
    values: Tensor
    times: Tensor
    prompts: Tensor
    elements: int

    def of_prompt(self, prompt: int) -> float:
        """Mean over the draws of one prompt."""
        return self.values[self.prompts == prompt].mean().item()


def fisher_divergence(
    base: NoisePredictor, custom: NoisePredictor, latents: Tensor, prompts: int, sigmas: Tensor, draws: int = 64,
    seed: int = 0, batch: int = 8, paired: bool = False,
) -> Divergence:  # fmt: skip
    """``1/2 E || eps_base(z_t, t, c') - eps_custom(z_t, t, c') ||^2`` (eq. 4), the squared norm summed over the latent.

    Images and non-concept prompts c' take turns; timesteps are uniform, one drawn from each of N equal slices, and the
    interval knows it. Images and prompts themselves are taken as given. The base model sees all draws before the
    customised one does. One call holds rows of one prompt only.

    Args:
        base, custom: both with the same prompts.
        latents: encoded images, (I, C, H, W).
        prompts: number of prompts.
        sigmas: training noise levels, ascending, (T,).
        draws: N, at least `prompts`.
        seed: of images, timesteps and noise.
        batch: rows per call at most.
        paired: each prompt is the caption of the image in its place, and said of no other.

    Raises:
        InfusionError: no image, no prompt, fewer draws than prompts, or pairs of which one half is missing.
    """
    if not len(latents):
        raise InfusionError("no images to compare the models on; give at least one")
    if prompts < 1:
        raise InfusionError("no prompts to compare the models on; give some that are not about the concept")
    if draws < prompts:
        raise InfusionError(f"{draws} draws are not enough for {prompts} prompts; ask for {prompts} or more")
    if paired and prompts != len(latents):
        raise InfusionError(f"{prompts} captions for {len(latents)} images; give one for each")
    generator = seeded(seed)
    times = stratified_times(draws, len(sigmas), generator)
    spoken = torch.arange(draws) % prompts
    images = spoken if paired else torch.randperm(draws, generator=generator) % len(latents)
    noise = torch.randn(draws, *latents.shape[1:], generator=generator)
    sigma, latents = sigmas.float().cpu()[times], latents.float().cpu()

    def answers(model: NoisePredictor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of draws, and the noise that a model sees in them."""
        for prompt in range(prompts):
            for rows in torch.split((spoken == prompt).nonzero().flatten(), batch):
                noised = latents[images[rows]] + sigma[rows].reshape(-1, 1, 1, 1) * noise[rows]
                yield rows, model(noised, sigma[rows], prompt)

    plain, values = torch.empty_like(noise), torch.empty(draws, dtype=torch.float64)
    for rows, seen in answers(base):
        plain[rows] = seen.to(plain)
    for rows, seen in answers(custom):
        difference = plain[rows].double() - seen.to(plain).double()
        values[rows] = difference.square().flatten(1).sum(1) / 2
    return Divergence(bootstrap_interval(values, GROUP), values, times, spoken, latents[0].numel())
