"""DreamBlend in the embedded host: two models draw side by side from the same noise, the early one guides the late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..attention import Maps, Plan, QueryKey, SuppliedMaps
from ..concepts import LoadedConcept
from ..dreamblend import BlendSettings, MapDistance, step_down
from ..errors import InfusionError
from ..readers import Recorder
from .model import EmbeddedModel
from .sampling import Moment, Sampler, SampleSettings, SampleStep
from .tasks import sampler_for


@dataclass(frozen=True)
class BlendStep(SampleStep):
    """After a step: E's latents, and G's, (N, C, H, W)."""

    reference: Tensor


class BlendSampler:
    """Draws N pictures of one prompt with a late model E that an early model G guides.

    Both start from the same noise, and each follows its own trajectory. G is not run once nothing more is to be guided.

    Args:
        early: G, with its own text states of the prompt and without concepts.
        late: E; its concepts act as they do without guidance.
        settings: how G guides E.

    Raises:
        InfusionError: the two models, or their numbers of steps, do not fit together.
    """

    def __init__(self, early: Sampler, late: Sampler, settings: BlendSettings) -> None:
        if early.denoiser.base != late.denoiser.base:
            raise InfusionError(
                "the early and the late model are of different kinds; blend two models trained from the same base"
            )
        if early.settings.steps != late.settings.steps:
            raise InfusionError("the early and the late model must draw in equally many steps")
        if late.settings.base_latent == "own":
            raise InfusionError("guidance takes the base latent 'shared' only; leave 'own' out")
        self.early, self.late, self.settings = early, late, settings
        self._sites = frozenset(site.name for site in settings.chosen(late.denoiser.base.sites))

    @torch.no_grad()
    def run(self, noise: Tensor) -> Iterator[BlendStep]:
        """Sample from unit noise (N, C, H, W), yielding after each step."""
        steps, settings = self.late.settings.steps, self.settings
        last = max((i for i in range(steps) if settings.guides(i, steps)), default=-1)
        early_x = noise * self.early.scheduler.init_noise_sigma
        x = noise * self.late.scheduler.init_noise_sigma
        moments = zip(self.early.moments(len(noise)), self.late.moments(len(noise)), strict=True)
        for early_moment, moment in moments:
            guided = settings.guides(moment.index, steps)
            if moment.index <= last:
                early_x, maps = self._early(early_x, early_moment, guided)
            if not guided:
                x = self.late.step(x, moment)
            elif settings.mode == "gradient":
                x = self.late.step(self._moved(x, moment, maps), moment)
            else:
                x = self._with_maps(x, moment, maps)
            yield BlendStep(moment.index + 1, steps, x, early_x)

    def _early(self, x: Tensor, moment: Moment, guided: bool) -> tuple[Tensor, Maps]:
        """One step of G, and the maps of its conditional half at the sites that take part."""
        rows, recorded = self.early.rows(x, moment), dict[str, QueryKey]()
        plan = Plan(readers=[Recorder(recorded, slice(-len(x), None))]) if guided else Plan()
        moved = self.early.advance(self.early.predict(rows, moment, plan), moment, x)
        return moved, {name: maps for name, maps in recorded.items() if name in self._sites}

    def _moved(self, x: Tensor, moment: Moment, maps: Maps) -> Tensor:
        """E's latent after its steps down the gradient; the conditional half alone is looked at."""
        settings = self.settings
        for _ in range(settings.gradient_steps):
            x = step_down(x, partial(self._distance, moment, maps), settings.alpha, settings.normalise)
        return x

    def _distance(self, moment: Moment, maps: Maps, x: Tensor) -> Tensor:
        reader = MapDistance(maps, self.settings.distance)
        self.late.predict_rows([(x, moment.cond)], moment, Plan(readers=[reader]))
        assert reader.total is not None  # `chosen` found sites
        return reader.total

    def _with_maps(self, x: Tensor, moment: Moment, maps: Maps) -> Tensor:
        """One step of E with G's maps in its conditional half."""
        rows = self.late.rows(x, moment)
        first = (len(rows) - 1) * len(x)
        source = SuppliedMaps(maps, slice(first, None))
        injections = self.late.injections(moment, dict(enumerate(range(first, first + len(x)))))
        plan = Plan(source, injections=injections, share=self.settings.alpha)
        return self.late.advance(self.late.predict(rows, moment, plan), moment, x)


def draw_blended(
    early: EmbeddedModel,
    late: EmbeddedModel,
    prompt: str,
    count: int,
    seed: int,
    sampling: SampleSettings,
    settings: BlendSettings,
    negative: str = "",
    concepts: Sequence[LoadedConcept] = (),
    batch: int = 8,
    on_step: Callable[[], None] | None = None,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Pictures of a prompt by the late model under the early one's guidance, and those of the early one.

    The early model's are whole only where the last step is guided; else they are as far as it was run.

    Args:
        early, late: models of one kind.
        prompt: each encodes it with its own text encoders.
        count: pictures; picture i is drawn from noise of `seed` + i.
        seed: of the first picture.
        sampling: how to sample, both alike.
        settings: how G guides E.
        negative: prompt of the unconditional half.
        concepts: at work in the late model.
        batch: pictures per pass.
        on_step: called after each sampling step of each batch.

    Raises:
        InfusionError: the models do not fit together, or see `draw`.
    """
    sampler = BlendSampler(
        sampler_for(early, prompt, (), sampling, negative),
        sampler_for(late, prompt, concepts, sampling, negative),
        settings,
    )
    pictures, references = list[Image.Image](), list[Image.Image]()
    for first in range(0, count, batch):
        steps = []
        for step in sampler.run(late.noise(min(batch, count - first), seed + first)):
            steps = [step]
            if on_step:
                on_step()
        (last,) = steps
        pictures += late.decode(last.latents)
        references += early.decode(last.reference)
    return pictures, references
