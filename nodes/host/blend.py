"""DreamBlend in the host: the early model is sampled first, from the same noise, and guides every prediction of the
late one.

Both runs go through the host's own sampling, which loads each model when its turn comes; two LoRAs on one base, whose
weights share their place, are never needed at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.dreamblend import BlendSettings, descent, map_distance
from ...infusion_core.errors import InfusionError
from ...infusion_core.sites import Site
from .blend_record import Call, Record, in_turn, read
from .blend_sites import BLEND, AtSite, SiteHooks, pass_of
from .denoiser import differentiable_attention, leave_inference_mode
from .options import with_option
from .patch import covers
from .streams import PLAIN
from .trajectory import random_state, restore, rewind

_RUN = "dreamblend_run"


class EarlyRun(SiteHooks):
    """The early model's sampling run, which is recorded."""

    def __init__(self, sites: Sequence[Site], settings: BlendSettings, record: Record) -> None:
        super().__init__(sites)
        self.settings, self.record = settings, record

    def prediction(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction."""
        guider, sigma = executor.class_obj, float(timestep.max())
        self.record.begin(sigma)
        if is_guided(self.settings, guider, sigma, model_options):
            state = pass_of(guider, len(x), self._keep)
            model_options = with_option(model_options, BLEND, state)
        return executor(x, timestep, model_options, seed, *args, **kwargs)

    def _keep(self, site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> None:
        self.record.add((site.name, number), query, key)


class LateRun:
    """What is known during the late model's sampling run.

    Attributes:
        record: of the early model's.
        inpainted: the host's denoise mask, (B, 1 or C, H, W), or None.
    """

    def __init__(self, record: Record, inpainted: Tensor | None) -> None:
        self.record, self.inpainted = record, inpainted
        self._calls = 0
        self._moved: Tensor | None = None  # by how much the latent has been moved, in units of the noise level

    def __deepcopy__(self, memo: object) -> LateRun:
        return self

    def next(self, sigma: float) -> Call:
        """The early model's prediction that belongs to the one that is made now."""
        self._calls += 1
        return self.record.find(self._calls - 1, sigma)

    def moved(self, x: Tensor, sigma: float) -> Tensor:
        """The sampler's latent as guidance has moved it.

        A step of DDIM or Euler scales what is apart from the clean picture by the ratio of the noise levels, so a
        move is carried along as a change of the noise; the sampler itself never hears of it.
        """
        return x if self._moved is None else x + sigma * self._moved

    def move(self, by: Tensor, sigma: float) -> None:
        """Remember a move."""
        by = by / sigma
        if self.inpainted is not None:
            by = by * self.inpainted.to(by)
        self._moved = by if self._moved is None else self._moved + by


class Guidance(SiteHooks):
    """The late model's wrappers.

    Args:
        early: the host's MODEL that guides.
        sites: that take part.
        settings: how.
        positive, negative: the early model's own conditionings, or None for the late one's.
    """

    def __init__(
        self, early: Any, sites: Sequence[Site], settings: BlendSettings, positive: Any, negative: Any
    ) -> None:
        super().__init__(sites)
        self.early, self.settings = early, settings
        self.own = {"positive": positive, "negative": negative}

    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """The wrappers by kind."""
        return {
            WrappersMP.OUTER_SAMPLE: self.sampling,
            WrappersMP.PREDICT_NOISE: self.prediction,
            WrappersMP.DIFFUSION_MODEL: self.network,
        }

    def sampling(
        self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor,
        denoise_mask: Tensor | None = None, callback: Any = None, disable_pbar: bool = False, seed: Any = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """The early model's run, then the late one's."""
        guider, record = executor.class_obj, Record()
        state = random_state(guider.model_patcher.load_device)
        run = EarlyRun(self.sites, self.settings, record)
        guider_of(guider, recorded(self.early, run), self.own).sample(
            noise.clone(), latent_image.clone(), sampler, sigmas, denoise_mask, callback, disable_pbar, seed
        )
        restore(state)
        rewind(guider)
        guider.model_options["transformer_options"][_RUN] = LateRun(record, denoise_mask)
        try:
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, *args, **kwargs
            )
        finally:
            record.close()

    def prediction(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction of the late model."""
        run: LateRun | None = model_options["transformer_options"].get(_RUN)
        guider, sigma = executor.class_obj, float(timestep.max())
        if run is None:
            return executor(x, timestep, model_options, seed, *args, **kwargs)
        call = run.next(sigma)
        if call.maps and is_guided(self.settings, guider, sigma, model_options):
            if self.settings.mode == "gradient":
                self._move(run, guider, call, x, timestep, model_options)
            else:
                state = pass_of(guider, len(x), supplied(call), self.settings.alpha)
                model_options = with_option(model_options, BLEND, state)
        return executor(run.moved(x, sigma), timestep, model_options, seed, *args, **kwargs)

    def _move(
        self, run: LateRun, guider: Any, call: Call, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> None:
        """Steps down the gradient, in the variance-preserving scale that `alpha` is meant in."""
        leave_inference_mode(guider.model_patcher.model.diffusion_model)
        sigma = float(timestep.max())
        scale = math.sqrt(1 + sigma**2)

        def distance(at: Tensor) -> Tensor:
            return self._distance(guider, call, at * scale, timestep.clone(), model_options)

        for _ in range(self.settings.gradient_steps):
            latent = run.moved(x, sigma) / scale
            run.move(-scale * descent(latent, distance, self.settings.alpha, self.settings.normalise), sigma)

    def _distance(self, guider: Any, call: Call, x: Tensor, timestep: Tensor, model_options: dict[str, Any]) -> Tensor:
        """How far the late model's maps are from the early one's, per picture, (B,)."""
        total, take = [x.new_zeros(len(x))], in_turn(call)

        def compare(site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> None:
            kept = take((site.name, number), uuid)
            if kept is None:
                raise InfusionError(_OTHER_ROWS)
            found = map_distance(query, key, read(kept[0], query), read(kept[1], key), self.settings.distance)
            total.append(found.reshape(-1, len(x)).mean(0))  # tiles of a picture are parts of it

        state = pass_of(guider, len(x), compare)
        options = with_option(with_option(model_options, BLEND, state), PLAIN, True)
        options = with_option(options, "optimized_attention_override", differentiable_attention)
        try:
            comfy.samplers.calc_cond_batch(
                guider.inner_model, [constant_controls(guider.conds["positive"])], x, timestep, options
            )
        except RuntimeError as error:
            if "nference" not in str(error):
                raise
            raise InfusionError(
                "a patch of another node on the late MODEL lets no gradient through; choose the mode 'replacement', or "
                "connect the MODEL from in front of that node"
            ) from error
        return torch.stack(total).sum(0)


_OTHER_ROWS = (
    "the late model's sampling runs a part of the prompt that the early one's left out; give both MODELs the same "
    "nodes and no step cache"
)


def supplied(call: Call) -> AtSite:
    """For `BlendPass.at`: the early model's query and key."""
    take = in_turn(call)

    def give(site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        kept = take((site.name, number), uuid)
        if kept is None:
            raise InfusionError(_OTHER_ROWS)
        found = read(kept[0], query), read(kept[1], key)
        if found[0].shape != query.shape or found[1].shape != key.shape:
            raise InfusionError("the two models' prompts differ in length; make them equally long")
        return found

    return give


def is_guided(settings: BlendSettings, guider: Any, sigma: float, model_options: Mapping[str, Any]) -> bool:
    """Whether a prediction at a noise level is guided, by the host's own schedule."""
    sigmas: Tensor = model_options["transformer_options"]["sample_sigmas"]
    step = int((sigmas.float().cpu() > sigma * (1 + 1e-4)).sum())
    return step % settings.every == 0 and covers(settings.window, sigma, guider.inner_model.model_sampling)


def guider_of(guider: Any, model: Any, own: Mapping[str, Any]) -> Any:
    """A copy of a guider for another MODEL, with conditionings of its own where there are any.

    Raises:
        InfusionError: those have another number of parts.
    """
    twin = copy.copy(guider)
    twin.model_patcher, twin.model_options = model, model.model_options
    twin.original_conds = {name: [cond.copy() for cond in conds] for name, conds in guider.original_conds.items()}
    for name, conds in own.items():
        if conds is None or name not in twin.original_conds:
            continue
        if len(conds) != len(twin.original_conds[name]):
            raise InfusionError(
                f"the early model's {name} conditioning has {len(conds)} parts, the late one's "
                f"{len(twin.original_conds[name])}; combine both alike"
            )
        twin.inner_set_conds({name: conds})
    return twin


def recorded(early: Any, run: EarlyRun) -> Any:
    """A clone of the early MODEL whose run is recorded."""
    model = early.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, BLEND, run.prediction)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BLEND, run.network)
    return model


@dataclass(frozen=True)
class _Constant:
    """A ControlNet whose output no gradient goes through."""

    control: Any

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.control.get_control(x.detach(), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control, name)


def constant_controls(conds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conditionings whose ControlNets are constants for the gradient."""
    return [{**cond, "control": _Constant(cond["control"])} if cond.get("control") else cond for cond in conds]


def guide(late: Any, early: Any, sites: Sequence[Site], settings: BlendSettings, positive: Any, negative: Any) -> Any:
    """A clone of the late MODEL that the early one guides; at alpha 0 it is the late MODEL alone."""
    if settings.mode == "gradient" and hasattr(late, "is_dynamic") and late.is_dynamic():
        late = late.get_non_dynamic_delegate()  # gradients need weights that are there
    model = late.clone()
    if settings.alpha:
        for kind, wrapper in Guidance(early, sites, settings, positive, negative).wrappers().items():
            model.add_wrapper_with_key(kind, BLEND, wrapper)
    return model
