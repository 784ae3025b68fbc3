"""DreamBlend in the host: the early model is sampled first, from the same noise, and guides every prediction of the
late one.

Both runs go through the host's own sampling, which loads each model when its turn comes; two LoRAs on one base, whose
weights share their place, are never needed at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

import comfy.sampler_helpers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.dreamblend import BlendSettings
from ...infusion_core.errors import InfusionError
from ...infusion_core.sites import Site
from .blend_gradient import move_of
from .blend_record import Call, Record, in_turn, read
from .blend_sites import BLEND, NODE, OTHER_ROWS, AtSite, SiteHooks, pass_of
from .options import with_option
from .patch import covers
from .trajectory import TRAJECTORY, Trajectory, random_state, restore, rewind

BACKWARD_ROWS = 4  # of a batch: what backward keeps of one row takes the memory of so many that are only drawn
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
        tell_apart(guider)
        self.record.begin(sigma)
        if is_guided(self.settings, guider, sigma, model_options):
            state = pass_of(guider, len(x), self._keep)
            model_options = with_option(model_options, BLEND, state)
        return executor(x, timestep, model_options, seed, *args, **kwargs)

    def _keep(self, site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> None:
        self.record.add((site.name, number), query, key)


class LateRun:
    """What is known during the late model's sampling.

    Attributes:
        record: of the early model's.
        inpainted: the host's denoise mask, (B, 1 or C, H, W), or None.
    """

    def __init__(self, record: Record, inpainted: Tensor | None) -> None:
        self.record, self.inpainted = record, inpainted
        self._pass: object = None
        self._calls = 0
        self._moved: Tensor | None = None  # by how much the latent has been moved, in units of the noise level

    def __deepcopy__(self, memo: object) -> LateRun:
        return self

    def next(self, sigma: float, trajectory: Trajectory | None) -> Call | None:
        """The early model's prediction that belongs to the one that is made now; None where there is none.

        Concepts whose base stream has a latent of its own sample twice; each of the two runs begins anew.
        """
        which = None if trajectory is None else (id(trajectory), trajectory.recording)
        if which != self._pass:
            self._pass, self._calls, self._moved = which, 0, None
        self._calls += 1
        return self.record.find(self._calls - 1, sigma)

    def moved(self, x: Tensor, sigma: float) -> Tensor:
        """The sampler's latent as guidance has moved it.

        A step of DDIM or Euler scales what is apart from the clean picture by the ratio of the noise levels, so a
        move is carried along as a change of the noise; the sampler itself never hears of it.
        """
        return x if self._moved is None else x + sigma * self._moved

    def move(self, by: Tensor, sigma: float, mask: Tensor | None) -> None:
        """Remember a move of the part that is drawn anew."""
        by = by / sigma if mask is None else by / sigma * mask.to(by)
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
            WrappersMP.PREPARE_SAMPLING: self.preparing,
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
        try:
            state = random_state(guider.model_patcher.load_device)
            twin = guider_of(guider, self.early, self.own, EarlyRun(self.sites, self.settings, record))
            # The host prepares a mask twice then, and takes channels for pictures the second time.
            mask = denoise_mask if denoise_mask is None or denoise_mask.dim() != 4 else denoise_mask[:, :1]
            twin.sample(noise.clone(), latent_image.clone(), sampler, sigmas, mask, callback, disable_pbar, seed)
            restore(state)
            rewind(guider)
            guider.model_options["transformer_options"][_RUN] = LateRun(record, denoise_mask)
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, *args, **kwargs
            )
        finally:
            record.close()

    def preparing(self, executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """The host loads the late model: whole, and with room for what backward needs, where there is a gradient."""
        if self.settings.mode == "gradient":
            noise_shape = [noise_shape[0] * BACKWARD_ROWS, *noise_shape[1:]]
            kwargs = {**kwargs, "force_full_load": True}
        return executor(model, noise_shape, conds, *args, **kwargs)

    def prediction(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction of the late model."""
        options = model_options["transformer_options"]
        run: LateRun | None = options.get(_RUN)
        guider, sigma = executor.class_obj, float(timestep.max())
        if run is None:
            return executor(x, timestep, model_options, seed, *args, **kwargs)
        tell_apart(guider)
        call = run.next(sigma, options.get(TRAJECTORY))
        if call is not None and is_guided(self.settings, guider, sigma, model_options):
            if self.settings.mode == "gradient":
                mask = _mask(run, guider, timestep, model_options)
                for _ in range(self.settings.gradient_steps):
                    at = run.moved(x, sigma)
                    run.move(move_of(self.settings, guider, call, at, timestep, model_options), sigma, mask)
            else:
                state = pass_of(guider, len(x), supplied(call), self.settings.alpha)
                model_options = with_option(model_options, BLEND, state)
        return executor(run.moved(x, sigma), timestep, model_options, seed, *args, **kwargs)


def _mask(run: LateRun, guider: Any, timestep: Tensor, model_options: Mapping[str, Any]) -> Tensor | None:
    """The part that is drawn anew at a noise level, as the host's own inpainting finds it."""
    change = model_options.get("denoise_mask_function")
    if run.inpainted is None or change is None:
        return run.inpainted
    sigmas = model_options["transformer_options"]["sample_sigmas"]
    found: Tensor = change(timestep, run.inpainted, extra_options={"model": guider, "sigmas": sigmas})
    return found


def tell_apart(guider: Any) -> None:
    """Give conditionings of other lists that share a uuid with a positive one a uuid of their own.

    Where one list has areas and another has none, the host puts copies of the former into the latter, uuid and all.
    """
    positive = {cond["uuid"] for cond in guider.conds.get("positive") or ()}
    for name, conds in guider.conds.items():
        if name != "positive" and any(cond["uuid"] in positive for cond in conds or ()):
            guider.conds[name] = [{**c, "uuid": uuid4()} if c["uuid"] in positive else c for c in conds]


def supplied(call: Call) -> AtSite:
    """For `BlendPass.at`: the early model's query and key."""
    take = in_turn(call)

    def give(site: Site, number: int, uuid: UUID, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        kept = take((site.name, number), uuid)
        if kept is None:
            raise InfusionError(OTHER_ROWS)
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


def guider_of(guider: Any, early: Any, own: Mapping[str, Any], run: EarlyRun) -> Any:
    """A copy of a guider for the early MODEL, with conditionings of its own where there are any.

    Raises:
        InfusionError: those have another number of parts.
    """
    conds = {name: [cond.copy() for cond in found] for name, found in guider.original_conds.items()}
    for name, given in own.items():
        if given is not None and name in conds:
            converted = comfy.sampler_helpers.convert_cond(given)
            if len(converted) != len(conds[name]):
                raise InfusionError(
                    f"the early model's {name} conditioning has {len(converted)} parts, the late one's "
                    f"{len(conds[name])}; combine both alike"
                )
            conds[name] = converted
    model = recorded(early, run, any(map(_has_hooks, chain(*conds.values()))))
    twin = copy.copy(guider)
    twin.model_patcher, twin.model_options, twin.original_conds = model, model.model_options, conds
    return twin


def _has_hooks(cond: Mapping[str, Any]) -> bool:
    control = cond.get("control")
    return "hooks" in cond or bool(control is not None and control.get_extra_hooks())


def recorded(early: Any, run: EarlyRun, hooked: bool) -> Any:
    """A clone of the early MODEL whose run is recorded; `hooked`: its conditionings bring weights."""
    if hooked and hasattr(early, "is_dynamic") and early.is_dynamic():
        early = early.get_non_dynamic_delegate()  # as the host does for them
    model = early.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, BLEND, run.prediction)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, BLEND, run.network)
    return model


def guide(late: Any, early: Any, sites: Sequence[Site], settings: BlendSettings, positive: Any, negative: Any) -> Any:
    """A clone of the late MODEL that the early one guides; at alpha 0 it is the late MODEL alone.

    Raises:
        InfusionError: one of them is guided already.
    """
    for name, model in (("model", late), ("early_model", early)):
        if any(BLEND in by_key for by_key in model.wrappers.values()):
            raise InfusionError(f"{name} is guided by another {NODE} already; leave one of the two nodes out")
    if settings.mode == "gradient" and hasattr(late, "is_dynamic") and late.is_dynamic():
        late = late.get_non_dynamic_delegate()  # gradients need weights that are there
    model = late.clone()
    if settings.alpha:
        for kind, wrapper in Guidance(early, sites, settings, positive, negative).wrappers().items():
            model.add_wrapper_with_key(kind, BLEND, wrapper)
    return model
