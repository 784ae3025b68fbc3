"""What the meter of a residual and of a LoRA looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..advisor import watched_words
from ..attention import Plan
from ..captions import CAPTION_TEMPLATES, OTHER_PROMPTS
from ..collapse import overlap
from ..concepts import LoadedConcept
from ..denoiser import EncodedPrompt
from ..metrics.fisher import DenoiserPredictor, NoisePredictor, fisher_divergence
from ..noise import seeded
from ..readers import WordMaps, WordReader
from ..tokens import says
from .apt import AptObjective
from .engine import Trainer
from .lora import LoraObjective
from .meter import BACKWARD, Gauge, Meter
from .residual import ResidualObjective
from .stopping import StopRule

DRAWS = 8  # of a distance
LOOKS = (0.4, 0.7)  # shares of the training timesteps at which maps are looked at: where layout is decided
SEED = 314_159
CONCEPT_APART, LORA_APART = 50, 100  # steps between the snapshots that the stop rule was measured with
Plain = Callable[[Sequence[str]], Sequence[EncodedPrompt]]
Watching = Callable[[str, str], EncodedPrompt]


@dataclass(frozen=True)
class Unsaid:
    """Prompts that a LoRA should leave as they are, and one whose attention is watched.

    Attributes:
        prompts: without the subject.
        watched: says the subject; once for each watched word that is found in it, with its spans alone.
        subject: the word of it that is watched, if it was found.
    """

    prompts: Sequence[EncodedPrompt]
    watched: Mapping[str, EncodedPrompt]
    subject: str

    @classmethod
    def read(cls, word: str, phrase: str, template: str, plain: Plain, watching: Watching) -> Unsaid:
        """What a LoRA that learns `phrase` should leave as it is, and a caption whose attention is watched.

        Args:
            word: the class word.
            phrase: what is said for the subject.
            template: of the caption, with ``{}`` for that.
            plain: reads prompts; those that cannot be read may be left out.
            watching: reads a prompt, with the spans of one of its words.
        """
        subject, others = watched_words(template, phrase)
        caption = template.replace("{}", phrase)
        watched = {one: watching(caption, one) for one in (subject, *others)}
        return cls(
            plain(unsaid_prompts(word, phrase)), {one: read for one, read in watched.items() if read.spans[0]}, subject
        )


def unsaid_prompts(word: str, phrase: str) -> list[str]:
    """Prompts that do not say a subject; the class word alone is one where the subject has an identifier."""
    others = [prompt for prompt in OTHER_PROMPTS if not says(prompt, word)]
    return ["", *others, *([] if phrase == word else [CAPTION_TEMPLATES[0].replace("{}", word)])]


def residual_meter(trainer: Trainer[Any], objective: ResidualObjective, rule: StopRule | None = None) -> Meter:
    """The meter of a concept. Prompts without its word are left exactly alone; measured is how far the word has moved.

    Maps are the base model's up to `replacement_end`, so they do not collapse there.

    Args:
        trainer: of the objective.
        objective: that is metered.
        rule: when to stop, and what to take; the measured one by default.
    """
    settings, denoiser = objective.settings, objective.denoiser
    beside = 1.0 if objective.compares else settings.map_window.end  # share of rows that have a base stream
    said = objective.prompts[:1]
    base = DenoiserPredictor(denoiser, said)

    def moved() -> float:
        concept = LoadedConcept("metered", objective.learned())
        return _distance(
            base, DenoiserPredictor(denoiser, said, [concept]), objective.shown.latents[:, 0], 1, denoiser.sigmas
        )

    gauges = [Gauge("moved", (2 + settings.map_window.end) * DRAWS, moved)]
    rule = rule or StopRule(apart=CONCEPT_APART)
    return _meter(trainer, objective, gauges, settings.batch_size, beside, 1 + settings.map_window.end, rule)


def lora_meter(trainer: Trainer[Any], objective: LoraObjective, unsaid: Unsaid, rule: StopRule | None = None) -> Meter:
    """The meter of a LoRA: its drift on prompts without the subject, and the collapse of attention.

    Args:
        trainer: of the objective.
        objective: that is metered; its LoRA is installed.
        unsaid: prompts.
        rule: when to stop, and what to take; the measured one by default.
    """
    settings, latents = objective.settings, objective.shown.latents[:, 0]
    frozen = isinstance(objective, AptObjective) and objective.settings.compares
    predictor = DenoiserPredictor(objective.denoiser, unsaid.prompts)

    def base(noised: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        with objective.lora.off():
            return predictor(noised, sigma, prompt)

    def drift() -> float:
        return _distance(base, predictor, latents, len(unsaid.prompts), objective.denoiser.sigmas)

    def collapse() -> float:
        with objective.lora.off():
            before = _overlap(objective, unsaid)
        return _overlap(objective, unsaid) - before

    gauges = [Gauge("drift", 2 * DRAWS, drift)]
    if unsaid.subject in unsaid.watched and len(unsaid.watched) > 1:
        gauges.append(Gauge("collapse", 2 * len(LOOKS), collapse))
    batches, rule = 1 if objective.prior is None else 2, rule or StopRule(apart=LORA_APART)
    return _meter(trainer, objective, gauges, settings.batch_size * batches, 1.0 if frozen else 0.0, 1.0, rule)


def _meter(
    trainer: Trainer[Any], objective: ResidualObjective | LoraObjective, gauges: list[Gauge], rows: int, beside: float,
    streams: float, rule: StopRule,
) -> Meter:  # fmt: skip
    """A meter whose training step runs `rows` rows with gradients, each beside so many without."""
    settings = objective.settings
    restraint = objective.indicator.restraint if isinstance(objective, ResidualObjective | AptObjective) else None

    def reference() -> Tensor:
        with torch.no_grad(), objective.off():
            return trainer.validation_losses()

    return Meter(
        reference,
        gauges,
        step_passes=settings.accumulation * rows * (1 + BACKWARD + beside),
        validation_passes=settings.validation_draws * streams,
        temperature=None if restraint is None else restraint.temperature,
        rule=rule,
    )


def _distance(base: NoisePredictor, tuned: NoisePredictor, latents: Tensor, prompts: int, sigmas: Tensor) -> float:
    """Mean squared difference of two models' predictions of the noise, of each number."""
    found = fisher_divergence(base, tuned, latents, prompts, sigmas, max(DRAWS, prompts), SEED)
    return found.values.mean().item() * 2 / found.elements


def _overlap(objective: LoraObjective, unsaid: Unsaid) -> float:
    """How much other words attend where the subject's does, see `overlap`."""
    denoiser, latent = objective.denoiser, objective.shown.latents[:1, 0]
    words = tuple(unsaid.watched)
    prompt = unsaid.watched[unsaid.subject].conditioning
    positions = {
        word: sorted({place for span in found.spans[0] for place in span}) for word, found in unsaid.watched.items()
    }
    maps = WordMaps(words)
    for number, share in enumerate(LOOKS):
        sigma = denoiser.sigmas[int(share * len(denoiser.sigmas))][None].to(latent.device)
        noise = torch.randn(latent.shape, generator=seeded(SEED + number)).to(latent)
        noised = latent + sigma.to(latent).reshape(-1, 1, 1, 1) * noise
        denoiser.predict(noised, sigma, prompt, Plan(readers=[WordReader(slice(None), positions, maps)]))
    others = [word for word in words if word != unsaid.subject]
    return overlap(maps, unsaid.subject, others, latent.shape[2], latent.shape[3]).mean().item()
