"""DDIM sampling with the two streams, both sources of the base stream's latent, and a prompt for each picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..attention import MapsOfRows, OwnMaps, Plan, QueryKey, SuppliedMaps
from ..concepts import LARGEST_SCALE, LoadedConcept
from ..denoiser import Conditioning, EncodedPrompt, Named, common_length, stack
from ..errors import InfusionError
from ..injection import Aim, Injection, inject_table
from ..noise import bin_of
from ..readers import Recorder
from ..residual_table import tables_of
from ..streams import BaseLatent
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
class Picture:
    """What a picture is drawn from, beside its noise.

    Attributes:
        prompt: encoded, with the spans of each concept's word.
        negative: conditioning of the unconditional half.
        concepts: made for this base, in the order of the prompt's spans.
    """

    prompt: EncodedPrompt
    negative: Conditioning
    concepts: Sequence[LoadedConcept] = ()


@dataclass(frozen=True)
class Moment:
    """One step of a run.

    Attributes:
        index, steps: its number, and how many there are.
        t: its timestep.
        uncond, cond: conditioning of both halves, a row for each picture.
        adding: of each picture, the concepts whose residuals are added.
        replaced: of each picture, whether it attends with the base stream's maps.
        awaited: of each picture, whether it will later, though not now.
    """

    index: int
    steps: int
    t: Tensor
    uncond: Conditioning
    cond: Conditioning
    adding: Sequence[Sequence[Named]]
    replaced: Sequence[bool]
    awaited: Sequence[bool]


class Sampler:
    """Draws N pictures of one prompt, or a picture of each of several, whose concepts may differ too.

    A picture's concept stream attends with the base stream's maps as long as any concept that its prompt names wants it
    (`LoadedConcept.map_window`); from then on no base pass is run for it. A picture without a concept is drawn in a
    pass of the rows that the base model alone would have.

    Args:
        denoiser: the base model.
        scheduler: a diffusers DDIMScheduler; used for its steps alone.
        pictures: what each is drawn from, texts of different lengths being brought to one; or one, for any number.
        settings: how to sample.

    Raises:
        InfusionError: more steps than the model has noise levels.
    """

    def __init__(
        self,
        denoiser: UNetDenoiser,
        scheduler: Any,
        pictures: Sequence[Picture],
        settings: SampleSettings | None = None,
    ) -> None:
        settings = settings or SampleSettings()
        self.denoiser, self.scheduler, self.settings = denoiser, scheduler, settings
        steps, most = settings.steps, len(denoiser.sigmas)
        if steps > most:
            raise InfusionError(f"{steps} steps are more than the {most} this model has; ask for fewer")
        length = common_length([half for p in pictures for half in (p.prompt.conditioning, p.negative)])
        prompts = [picture.prompt.lengthened(length) for picture in pictures]
        self._cond = [prompt.conditioning for prompt in prompts]
        self._uncond = [picture.negative.lengthened(length) for picture in pictures]
        self._named = [prompt.named(picture.concepts) for prompt, picture in zip(prompts, pictures, strict=True)]
        residuals = {id(c.residual): c.residual for named in self._named for c, _ in named}
        dtype = self._cond[0].context.dtype
        self._tables, places = tables_of(list(residuals.values()), denoiser.device, dtype)
        self._places = dict(zip(residuals, places, strict=True))

    @torch.no_grad()
    def run(self, noise: Tensor) -> Iterator[SampleStep]:
        """Sample from unit noise (N, C, H, W), yielding after each step.

        Raises:
            InfusionError: see `moments`.
            ValueError: not as many pictures as there are prompts, where there are several.
        """
        x = noise * self.scheduler.init_noise_sigma
        base_x = x if self.settings.base_latent == "own" else None
        for moment in self.moments(len(noise)):
            x, base_x = self._streams(x, base_x, moment)
            yield SampleStep(moment.index + 1, moment.steps, x)

    def moments(self, count: int) -> Iterator[Moment]:
        """Every step of a run that draws so many pictures.

        Raises:
            InfusionError: the scheduler's steps reach beyond the model's noise levels.
            ValueError: see `run`.
        """
        if len(self._cond) not in (1, count):
            raise ValueError(f"{count} pictures cannot be drawn of {len(self._cond)} prompts")
        times = count // len(self._cond)  # 1, or all of one prompt
        self.scheduler.set_timesteps(self.settings.steps, device=self.denoiser.device)
        cond, uncond, everything = stack(self._cond * times), stack(self._uncond * times), self._named * times
        timesteps = self.scheduler.timesteps
        steps, most = len(timesteps), len(self.denoiser.sigmas)
        if timesteps.max() >= most:  # "leading" with an offset
            raise InfusionError(f"{steps} steps reach beyond the {most} noise levels of this model; ask for fewer")
        replacing = [
            [any(c.map_window.covers(i / steps) for c, _ in named) for named in everything] for i in range(steps)
        ]
        last = [max((i for i, now in enumerate(own) if now), default=-1) for own in zip(*replacing, strict=True)]
        for i, t in enumerate(timesteps):
            done = i / steps
            adding = [[(c.scaled(done), spans) for c, spans in named if c.adds_at(done)] for named in everything]
            awaited = [not now and i < end for now, end in zip(replacing[i], last, strict=True)]
            yield Moment(i, steps, t, uncond, cond, adding, replacing[i], awaited)

    def rows(self, x: Tensor, moment: Moment) -> list[Row]:
        """A latent (N, C, H, W) with the conditioning of each half that there is; the conditional one comes last."""
        return [(x, moment.uncond), (x, moment.cond)] if self.guided else [(x, moment.cond)]

    def step(self, x: Tensor, moment: Moment) -> Tensor:
        """One step with one latent (N, C, H, W): base and concept stream differ in the residual alone."""
        return self._streams(x, None, moment)[0]

    def _streams(self, x: Tensor, base_x: Tensor | None, moment: Moment) -> tuple[Tensor, Tensor | None]:
        """One step of the concept stream and, where it has a latent of its own, of the base stream.

        The rows that the base model has come first: of pictures that attend with the base stream's maps, that is the
        base stream. Further rows follow for those, with the maps of the first.
        """
        base_x = None if base_x is None else self._followed(base_x, moment)
        mapped = [i for i, r in enumerate(moment.replaced) if r and (base_x is not None or moment.adding[i])]
        seen = x if base_x is None else _put(x, mapped, base_x[mapped])
        # The unconditional half of two trajectories is two; which one comes first decides whose maps it has.
        swapped = base_x is not None and self.settings.replace_unconditional
        first = [(seen if swapped else x, moment.uncond), (seen, moment.cond)][not self.guided :]
        further: list[Row] = []
        if mapped:
            if base_x is not None and self.guided:
                further.append(((x if swapped else base_x)[mapped], moment.uncond.of(mapped)))
            further.append((x[mapped], moment.cond.of(mapped)))
        out, more = self._predict_both(first, further, mapped, moment, swapped)
        ours = [*out[:-1], _put(out[-1], mapped, more[-1]) if mapped else out[-1]]
        if base_x is None or not mapped:
            return self.advance(ours, moment, x), base_x
        base = [half[mapped] for half in out]
        if self.guided and swapped:
            ours[0] = _put(out[0], mapped, more[0])
        elif self.guided:
            base[0] = more[0]
        return self.advance(ours, moment, x), _put(base_x, mapped, self.advance(base, moment, base_x[mapped]))

    def _followed(self, base_x: Tensor, moment: Moment) -> Tensor:
        """One step of the base stream of those pictures that await its maps: it is on its own trajectory by then."""
        rows = [i for i, awaited in enumerate(moment.awaited) if awaited]
        if not rows:
            return base_x
        x, halves = base_x[rows], [moment.uncond, moment.cond][not self.guided :]
        out = self.predict([(x, half.of(rows)) for half in halves], moment)
        return _put(base_x, rows, self.advance(out, moment, x))

    def _predict_both(
        self, first: Sequence[Row], further: Sequence[Row], mapped: Sequence[int], moment: Moment, swapped: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the network says of first rows (N each) and of further rows (as many as `mapped` each).

        The last further rows attend with the maps of the last first rows; if `swapped`, so do those of the other half.
        All are one pass, unless a picture names no concept: its pass has the rows that it has without the others'.
        """
        count = len(moment.adding)
        base = (len(first) - 1) * count  # the conditional half's first row
        halves = [base] if not swapped else range(0, base + 1, count)
        sources = [half + picture for half in halves for picture in mapped]
        own = len(further) * len(mapped) - len(sources)  # of further rows, those that keep their maps
        at = {picture: base + picture for picture in range(count) if picture not in mapped}
        after = (len(further) - 1) * len(mapped)
        if not further or all(self._named):
            every = len(first) * count
            at |= {picture: every + after + place for place, picture in enumerate(mapped)}
            maps = MapsOfRows([*range(every + own), *sources]) if further else OwnMaps()
            out = self.predict_rows([*first, *further], moment, Plan(maps, injections=self.injections(moment, at)))
            return list(out[:every].chunk(len(first))), list(out[every:].chunk(len(further))) if further else []
        recorded: dict[str, QueryKey] = {}
        plan = Plan(readers=[Recorder(recorded, sources)], injections=self.injections(moment, at))
        out = self.predict_rows(first, moment, plan)
        at = {picture: after + place for place, picture in enumerate(mapped)}
        supplied = SuppliedMaps(recorded, slice(own, None) if own else None)
        more = self.predict_rows(further, moment, Plan(supplied, injections=self.injections(moment, at)))
        return list(out.chunk(len(first))), list(more.chunk(len(further)))

    def predict(self, rows: Sequence[Row], step: Moment, plan: Plan | None = None) -> list[Tensor]:
        """One forward pass over groups of rows; one output per group."""
        return list(self.predict_rows(rows, step, plan or Plan()).chunk(len(rows)))

    def predict_rows(self, rows: Sequence[Row], step: Moment, plan: Plan) -> Tensor:
        """One forward pass over groups of rows, their outputs below each other."""
        latents = self.scheduler.scale_model_input(torch.cat([x for x, _ in rows]), step.t)
        compute = self.settings.compute
        with torch.autocast(latents.device.type, compute, enabled=compute is not None):
            return self.denoiser.forward(latents, step.t, stack([c for _, c in rows]), plan).to(latents)

    def injections(self, step: Moment, rows: Mapping[int, int]) -> list[Injection]:
        """The residuals of this step, one injection for each kind of concept.

        Args:
            step: that adds them.
            rows: of the pass, by picture.
        """
        sigmas, device = self.denoiser.sigmas, self.denoiser.device
        sigma = sigmas[int(step.t)][None]
        aims: list[list[Aim]] = [[] for _ in self._tables]
        for picture, row in rows.items():
            for concept, spans in step.adding[picture]:
                number, index = self._places[id(concept.residual)]
                bin_ = int(bin_of(sigma, sigmas, concept.residual.bins))
                aims[number].append(Aim(concept, index, row, spans, bin_))
        each = zip(self._tables, aims, strict=True)
        return [inject_table(table, aimed, device) for table, aimed in each if aimed]

    def advance(self, out: Sequence[Tensor], step: Moment, x: Tensor) -> Tensor:
        """Guidance, then DDIM."""
        predicted = out[-1] if len(out) == 1 else out[0] + self.settings.guidance * (out[1] - out[0])
        result: Tensor = self.scheduler.step(predicted, step.t, x).prev_sample
        return result

    @property
    def guided(self) -> bool:
        return self.settings.guidance != 1


def _put(rows: Tensor, places: Sequence[int], values: Tensor) -> Tensor:
    """Rows with other ones in some places."""
    changed = rows.clone()
    changed[list(places)] = values
    return changed
