"""Infusion's objective: plain denoising loss on the concept stream, gradients into the residuals alone (eq. 8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..concepts import LoadedConcept
from ..denoiser import Denoiser, EncodedPrompt
from ..errors import InfusionError
from ..residuals import REPLACEMENT_END, ConceptResidual, Layout, Where, zero_residual
from ..schedule import ALWAYS, NEVER, RateSchedule, Window
from .engine import Trainer
from .looks import Look, errors_of
from .numbers import Numbers, with_random_keys
from .objective import ParameterGroup, Times, Weighting, loss_weights
from .overfitting import UNRESTRAINED, Indicator, Restraint
from .settings import MOST_AT_ONCE, TrainSettings
from .shown import Drawn, EncodedCaptions, Said, Shown, normalised
from .state import TrainState


@dataclass(frozen=True, kw_only=True)
class ResidualSettings(TrainSettings):
    """How to train a concept. The batch size is the paper's; the rest was chosen on TinyWorld (docs/lab.md).

    Attributes:
        steps: optimizer steps; the paper has 100 to 2000.
        learning_rate: of AdamW; the paper has 0.01, constant.
        batch_size: samples per pass.
        layout: where the residual lives, see `ConceptResidual`.
        parts: that the layout ``parts`` tells apart.
        key_scale: size of the random keys that ``parts`` start with.
        key_rate: learning rate of the keys over that of the residuals.
        where: ``up`` for the UNet's up half alone.
        bins: timestep bins, each with its own residual.
        replace_maps: the concept stream attends with the base stream's maps.
        replacement_end: share of a sampling run up to which it does; from there on, at lower noise, with its own.
        weighting: of the loss over noise levels; ``uniform`` as in the paper, ``velocity`` weighs
            ``min(1 + sigma^2, 8)``, which attends more to the high noise where appearance is decided.
        times: how a batch's timesteps are chosen: ``stratified``, one per equal slice, or ``uniform``, independently.
        restraint: how overfitting is measured, and what follows; nothing by default.
    """

    steps: int = 200
    learning_rate: float = 0.2
    schedule: RateSchedule = "cosine"
    snapshot_every: int = 50
    validation_draws: int = 8
    batch_size: int = 4
    layout: Layout = "layer"
    parts: int = 3
    key_scale: float = 1.0
    key_rate: float = 1.0
    where: Where = "everywhere"
    bins: int = 2
    replace_maps: bool = True
    replacement_end: float = 0.4
    weighting: Weighting = "velocity"
    times: Times = "stratified"
    restraint: Restraint = UNRESTRAINED

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(batch_size=MOST_AT_ONCE, bins=MOST_AT_ONCE, validation_draws=MOST_AT_ONCE, parts=MOST_AT_ONCE)
        if not 0.01 <= self.replacement_end <= 1:
            raise InfusionError(
                f"replacement_end must be 0.01 to 1, got {self.replacement_end:g}; to never attend with "
                "the base model's maps, give --no-replace-maps (replace_maps off)"
            )

    @property
    def map_window(self) -> Window:
        """The part of a sampling run at whose noise levels maps are replaced."""
        return Window(0.0, self.replacement_end) if self.replace_maps else NEVER

    @property
    def facts(self) -> dict[str, str]:
        """What a concept's metadata must tell of such a training; nothing where maps were always replaced."""
        if not self.replace_maps:
            return {"replace_maps": "false"}
        return {} if self.map_window == ALWAYS else {REPLACEMENT_END: f"{round(self.replacement_end, 6):g}"}


class ResidualObjective:
    """The residuals of one concept.

    Args:
        denoiser: the frozen base model.
        latents: encoded images, (N, C, H, W), on the denoiser's device; or with variants of each, the first of which is
            the image itself, (N, 1 + variants, C, H, W).
        prompts: encoded captions, each with the spans of the word as its only concept; all of one context length.
        word: the concept's word.
        settings: how to train.
        start: a concept to continue from; its layout and bins must be the settings'.
        masks: weight of the loss over each image, (N, 1, H, W), such as where the subject is; or over each variant, as
            it counts, (N, 1 + variants, 1, H, W); None for evenly.
        said: which prompts may be said of each image, by number; None for any.

    Attributes:
        indicator: how overfitted the run is, if that is measured; moves with every batch.

    Raises:
        InfusionError: no images, one that is not finite, an empty mask, no caption that holds the word, or `start`
            does not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        prompts: Sequence[EncodedPrompt],
        word: str,
        settings: ResidualSettings,
        start: ConceptResidual | None = None,
        masks: Tensor | None = None,
        said: Said | None = None,
    ) -> None:
        self.denoiser, self.settings = denoiser, settings
        self._show(latents, prompts, word, masks, said)
        self.indicator = Indicator(settings.restraint, len(denoiser.sigmas))
        tokens = len(prompts[0].spans[0][0])
        blank = zero_residual(
            denoiser.base, word, settings.layout, settings.bins, tokens, settings.parts, settings.where
        )
        if settings.layout == "parts":
            blank = with_random_keys(blank, settings.key_scale, settings.seed)
        chosen = blank if start is None else _continued(start, blank, denoiser)
        self._numbers = Numbers(replace(chosen, training=settings.facts).to(denoiser.device, torch.float32))

    def on(
        self, latents: Tensor, prompts: Sequence[EncodedPrompt], masks: Tensor | None = None, said: Said | None = None
    ) -> ResidualObjective:
        """The same residuals and indicator, on other images; arguments and errors as of the class."""
        other = copy(self)
        other._show(latents, prompts, self._numbers.residual().word, masks, said)
        return other

    def _show(
        self, latents: Tensor, prompts: Sequence[EncodedPrompt], word: str, masks: Tensor | None, said: Said | None
    ) -> None:
        if not prompts or not all(p.spans and p.spans[0] for p in prompts):
            raise InfusionError(f"a caption does not hold the word {word!r}; check the caption templates")
        self.prompts = prompts
        self.shown = Shown(
            latents if latents.dim() == 5 else latents[:, None],
            EncodedCaptions([prompt.conditioning for prompt in prompts]),
            masks if masks is None or masks.dim() == 5 else normalised(masks)[:, None],
            said,
        )

    def groups(self) -> list[ParameterGroup]:
        """The residuals by place, and the keys of their parts."""
        return self._numbers.groups(self.settings.key_rate)

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The weighted denoising loss of one batch."""
        look = self.look(generator)
        ((errors, reference),) = errors_of(self.denoiser, [look], self.settings.map_window, self.compares)
        return {"denoising": self.weighed(look.times, errors, reference)}

    @property
    def context_length(self) -> int:
        """Tokens of every caption."""
        return self.prompts[0].conditioning.context.shape[1]

    @property
    def compares(self) -> bool:
        """Whether the base model is asked about every batch."""
        return self.settings.restraint.measures

    @property
    def measured(self) -> Indicator | None:
        """The indicator, where overfitting is measured."""
        return self.indicator if self.compares else None

    def look(self, generator: Generator) -> Look:
        """A random batch."""
        settings, steps = self.settings, len(self.denoiser.sigmas)
        variants = self.indicator.variants
        return self._look(self.shown.drawn(settings.batch_size, settings.times, steps, generator, variants))

    def weighed(self, times: Tensor, errors: Tensor, reference: Tensor | None) -> Tensor:
        """The loss of each sample of a batch, (B,); the indicator takes the batch in.

        Args:
            times: training timesteps, (B,).
            errors: of the concept stream, (B,).
            reference: of the base model, (B,), where it was asked.
        """
        weights = loss_weights(self.settings.weighting, self.denoiser.sigmas)[times] * self.indicator.weights(times)
        if reference is not None:
            self.indicator.update(times, reference, errors)
        return errors * weights.to(errors)

    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted losses (draws,), see `Shown.fixed`."""
        parts = self.shown.fixed(draws, self.settings.batch_size, len(self.denoiser.sigmas), seed)
        window = self.settings.map_window
        return torch.cat([errors_of(self.denoiser, [self._look(part)], window)[0][0] for part in parts])

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> ConceptResidual:
        """The concept as learned so far, detached, on the CPU."""
        residual = self._numbers.residual()
        return replace(residual, tensors={k: v.detach().cpu().clone() for k, v in residual.tensors.items()})

    @contextmanager
    def off(self) -> Iterator[None]:
        """The losses are the base model's."""
        self._numbers.strength = 0.0
        try:
            yield
        finally:
            self._numbers.strength = 1.0

    def extra_state(self) -> dict[str, Tensor]:
        """The indicator's, if overfitting is measured."""
        return self.indicator.state() if self.settings.restraint.measures else {}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Take it back."""
        if self.settings.restraint.measures:
            self.indicator.restore(extra)

    def _look(self, drawn: Drawn) -> Look:
        residual = self._numbers.residual()
        prompts = [self.prompts[caption] for caption in drawn.captions.tolist()]
        concept = LoadedConcept(residual.word, residual, self._numbers.strength)
        noised = self.shown.noised(drawn, self.denoiser.sigmas, self.denoiser.prediction)
        return Look(concept, noised, drawn.times, prompts, self.shown.weighted(drawn))


def residual_trainer(
    denoiser: Denoiser, latents: Tensor, prompts: Sequence[EncodedPrompt], word: str, settings: ResidualSettings,
    start: ConceptResidual | None = None, state: TrainState | None = None, masks: Tensor | None = None,
    said: Said | None = None,
) -> Trainer[ConceptResidual]:  # fmt: skip
    """The engine on a `ResidualObjective`; arguments and errors as there, `state` as in `Trainer`."""
    return Trainer(ResidualObjective(denoiser, latents, prompts, word, settings, start, masks, said), settings, state)


def _continued(start: ConceptResidual, blank: ConceptResidual, denoiser: Denoiser) -> ConceptResidual:
    """`blank` with the numbers of a concept to continue from."""
    start.check_fits(denoiser.base)
    if {k: v.shape for k, v in start.tensors.items()} != {k: v.shape for k, v in blank.tensors.items()}:
        raise InfusionError(
            f"the concept to continue from has {_told(start)}, not {_told(blank)}; set the same layout, bins, parts, "
            "place and word"
        )
    return replace(blank, tensors=start.tensors)


def _told(concept: ConceptResidual) -> str:
    return (
        f"layout {concept.layout}, {concept.bins} bins, {concept.tokens} tokens, {concept.parts} parts and "
        f"{len(concept.tensors)} places"
    )
