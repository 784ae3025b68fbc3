"""Training as diffusers' example scripts do it: plain noise prediction, AdamW, clipped gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from infusion_core import noise as noise_levels
from infusion_core.attention import Plan
from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.denoiser import Conditioning
from infusion_core.embedded.model import EmbeddedModel

from ..studio import Studio, text_states
from .method import Learned, Recipe, Snapshot, Subject

Batch = tuple[Tensor, Tensor, Tensor]  # latents (B, C, h, w), text states (B, L, D), weight of each loss (B,)
PLAIN = CAPTION_TEMPLATES[:1]  # the one caption of DreamBooth and Custom Diffusion
CLIP = 1.0  # norm that gradients are clipped to


def batches(
    studio: Studio,
    model: EmbeddedModel,
    subjects: Sequence[Subject],
    phrases: Sequence[str],
    recipe: Recipe,
    templates: Sequence[str] = PLAIN,
) -> Callable[[Generator], Batch]:
    """A function that draws batches: photos under their phrases and, with a prior weight, class pictures.

    Args:
        studio: for class pictures.
        model: whose text encoder is used; gradients flow through it.
        subjects: what is learned.
        phrases: per subject, what a caption says for it.
        recipe: batch size and weight of the prior.
        templates: captions with ``{}``.
    """
    photos = [model.encode(list(s.photos)) for s in subjects]
    priors = [studio.class_latents(s.word) for s in subjects] if recipe.prior_weight else []

    def draw(generator: Generator) -> Batch:
        def pick(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        rows, texts, weights = [], [], []
        for _ in range(recipe.batch_size):
            i = pick(len(subjects))
            rows.append(photos[i][pick(len(photos[i]))])
            texts.append(templates[pick(len(templates))].format(phrases[i]))
            weights.append(1.0)
            if priors:
                rows.append(priors[i][pick(len(priors[i]))])
                texts.append(PLAIN[0].format(subjects[i].word))
                weights.append(recipe.prior_weight)
        scale = torch.tensor(weights, device=model.denoiser.device) / recipe.batch_size
        return torch.stack(rows), text_states(model, texts), scale

    return draw


def fit(
    model: EmbeddedModel,
    groups: list[dict[str, Any]],
    draw: Callable[[Generator], Batch],
    subjects: Sequence[Subject],
    tensors: Callable[[], dict[str, Tensor]],
    marks: Sequence[int],
    seed: int,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[Snapshot]:
    """Train, yielding after every step in `marks`.

    Args:
        model: holds what is trained.
        groups: parameter groups of AdamW.
        draw: gives a batch.
        subjects: what is learned.
        tensors: gives what has been learned.
        marks: steps to yield at; the last ends training.
        seed: of every random choice.
        after_step: called after each step.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    seconds, losses = 0.0, []
    for step in range(1, max(marks) + 1):
        started = time.perf_counter()
        generator = Generator().manual_seed(seed * 1_000_003 + step)
        loss = _loss(model, draw(generator), generator)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        after_step()
        losses.append(loss.item())
        seconds += time.perf_counter() - started
        if step in marks:
            yield Snapshot(step, seconds, sum(losses) / len(losses), Learned.of(subjects, tensors()))
            losses = []


def _loss(model: EmbeddedModel, batch: Batch, generator: Generator) -> Tensor:
    """Weighted sum of squared errors of noise prediction; timesteps uniform."""
    latents, states, weights = batch
    denoiser = model.denoiser
    times = torch.randint(len(denoiser.sigmas), (len(latents),), generator=generator)
    eps = torch.randn(latents.shape, generator=generator).to(latents)
    sigma = denoiser.sigmas[times].to(latents)
    noised = latents + sigma.reshape(-1, 1, 1, 1) * eps
    output = denoiser.predict(noised, sigma, Conditioning(states), Plan())
    wanted = noise_levels.target(denoiser.prediction, latents, eps, sigma)
    return ((output - wanted).square().mean(dim=(1, 2, 3)) * weights).sum()
