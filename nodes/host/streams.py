"""The two streams in the host: conditionings that name a concept run twice, as base rows and as concept rows.

Base rows are a twin of the conditioning with strength 0: they ride in the same batch, supply query inputs and are
weighed with nothing. Where that could disturb another node's patches, they run in a pass of their own first. Keys need
no care: both read the same text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.hooks import EnumHookType
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.noise import bin_of
from .binding import spans_in
from .passes import KEY, BaseRow, Bound, Entry, Pass
from .patch import Active, Patch, check_replacers

TRAJECTORY = "infusion_trajectory"
ROW_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
Conds = list[Any]  # a list of conditionings per guidance term, or None


@dataclass
class Trajectory:
    """What the base stream's own sampling run showed the network, call by call."""

    recording: bool = True
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    next: int = 0

    def replay(self, timestep: Tensor) -> Tensor:
        """The base stream's latent at this call.

        Raises:
            InfusionError: the sampler chose other noise levels than in the base run.
        """
        if self.next >= len(self.calls) or not torch.equal(self.calls[self.next][1], timestep):
            raise InfusionError(
                "base latent 'own' needs a sampler with fixed steps and no step cache; this one adapts its steps to "
                "the picture, or a cache skipped some: choose another sampler, remove the cache, or use 'shared'"
            )
        self.next += 1
        return self.calls[self.next - 1][0]


def wrapper(patch: Patch) -> dict[str, Callable[..., Any]]:
    """The host's wrappers for a patch, by kind."""

    def sampling(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
                 *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        if not _named(patch, guider.conds):
            words = ", ".join(repr(c.residual.word) for c in patch.concepts)
            logging.info("Infusion: no prompt names %s; the picture is the unpatched model's", words)
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        check_replacers(patch, extra_args["model_options"]["transformer_options"])
        if patch.base_latent == "shared":
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        trajectory = Trajectory()
        options = with_option(extra_args["model_options"], TRAJECTORY, trajectory)
        states = _random_states(noise.device)
        executor(guider, sigmas, {**extra_args, "model_options": options}, None, noise.clone(), *args, **kwargs)
        _restore(states, noise.device)
        _rewind(guider)
        trajectory.recording = False
        return executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *args, **kwargs)

    def prediction(executor: Any, model: Any, conds: Conds, x: Tensor, timestep: Tensor, model_options: dict[str, Any],
                   *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        def run(lists: Conds, latent: Tensor, state: Pass | None) -> Any:
            options = model_options if state is None else with_option(model_options, KEY, state)
            return executor(model, lists, latent, timestep, options, *args, **kwargs)

        comfy.model_management.throw_exception_if_processing_interrupted()
        trajectory: Trajectory | None = model_options["transformer_options"].get(TRAJECTORY)
        if trajectory is not None and trajectory.recording:
            trajectory.calls.append((x.clone(), timestep.clone()))
            return run(conds, x, None)
        base_x = x if trajectory is None else trajectory.replay(timestep)
        sigma = float(timestep.max())
        sampling = model.model_sampling
        replacing = patch.replacement.covers(sigma, sampling)
        active = [c for c in patch.concepts if c.window.covers(sigma, sampling)]
        # With a latent of its own the base stream's maps differ even where no residual is added.
        named = patch.concepts if trajectory is not None and replacing else active
        bound = _bound(patch, named, active, conds, sigma, sampling)
        if not bound:
            return run(conds, x, None)
        state = Pass({s.name: s for s in patch.base.sites}, bound, len(x), replacing)
        if not replacing:
            return run(conds, x, state)
        watched = _watched(model_options, conds)
        if trajectory is None and not watched and _weighed_by_strength(conds, bound, model_options):
            return run(_twinned(conds, bound), x, state)
        run(_base(conds, bound, whole=watched), base_x, state)
        return run(conds, x, state)

    return {WrappersMP.SAMPLER_SAMPLE: sampling, WrappersMP.CALC_COND_BATCH: prediction}


def _bound(
    patch: Patch, named: Sequence[Active], active: Sequence[Active], conds: Conds, sigma: float, sampling: Any
) -> dict[Entry, Bound]:
    """Every conditioning that names one of the concepts `named`, with those that are `active`."""
    found: dict[Entry, Bound] = {}
    for index, entries in enumerate(conds):
        for cond in entries or []:
            spans = spans_in(cond, patch.memory)
            if not any(spans.get(c.key) and c.strength for c in named):
                continue
            at_work = [c for c in active if spans.get(c.key) and c.strength]
            found[index, cond["uuid"]] = Bound(
                [(c.residual, c.strength, spans[c.key], _bin(c.residual.bins, sigma, sampling)) for c in at_work],
                int(cond["model_conds"]["c_crossattn"].cond.shape[1]),
            )
    return found


def _twin(cond: Mapping[str, Any]) -> dict[str, Any]:
    """The base stream's twin of a conditioning."""
    return {**cond, "uuid": BaseRow.of(cond["uuid"]), "strength": 0.0}


def _twinned(conds: Conds, bound: Mapping[Entry, Bound]) -> Conds:
    """The lists with a twin of every bound conditioning at their end: the host takes the last rows first."""
    return [c and [*c, *(_twin(cond) for cond in c if (index, cond["uuid"]) in bound)] for index, c in enumerate(conds)]


def _base(conds: Conds, bound: Mapping[Entry, Bound], whole: bool) -> Conds:
    """The lists with twins in place of the bound conditionings; without the unbound ones unless `whole`."""
    return [
        [
            _twin(cond) if (index, cond["uuid"]) in bound else cond
            for cond in c or []
            if whole or (index, cond["uuid"]) in bound
        ]
        or None
        for index, c in enumerate(conds)
    ]


def _watched(model_options: Mapping[str, Any], conds: Conds) -> bool:
    """Whether other nodes' patches may look at which rows are positive, and take a second positive row amiss.

    So do attention couple and normalized attention guidance. Each pass then has the rows that they expect.
    """
    options = model_options["transformer_options"]
    patches = [p for kind in ROW_PATCHES for p in options.get("patches", {}).get(kind, ())]
    hooks = [h for c in conds for cond in c or [] if cond.get("hooks") for h in cond["hooks"].hooks]
    return (
        any(not str(getattr(patch, "__module__", "")).startswith(__package__) for patch in patches)
        or bool(options.get("patches_replace", {}).get("attn1"))
        or any(hook.hook_type is EnumHookType.TransformerOptions for hook in hooks)
    )


def _weighed_by_strength(conds: Conds, bound: Mapping[Entry, Bound], model_options: Mapping[str, Any]) -> bool:
    """Whether twins of strength 0 weigh nothing, and run with their conditionings or before them.

    A conditioning set as default is weighed by what the others leave over, one with GLIGEN boxes runs alone, and
    several GPUs share out the rows.
    """
    named = [cond for index, c in enumerate(conds) for cond in c or [] if (index, cond["uuid"]) in bound]
    return "multigpu_clones" not in model_options and not any("default" in c or "gligen" in c for c in named)


def _rewind(guider: Any) -> None:
    """Put the keyframes of LoRA hooks back to the start of the schedule, as the host does once per sampling."""
    hooks = [cond["hooks"] for entries in guider.conds.values() for cond in entries or [] if cond.get("hooks")]
    for group in hooks:
        group.reset()
    if hooks:
        guider.model_patcher.clear_cached_hook_weights()


def _named(patch: Patch, conds: Mapping[str, Any]) -> bool:
    """Whether any conditioning names a concept that is not switched off."""
    keys = {c.key for c in patch.concepts if c.strength}
    return any(keys & spans_in(cond, patch.memory).keys() for entries in conds.values() for cond in entries or [])


def _bin(bins: int, sigma: float, sampling: Any) -> int:
    return int(bin_of(torch.tensor([sigma]), sampling.sigmas.float().cpu(), bins)) if bins > 1 else 0


def with_option(model_options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The model options with one more entry among the transformer options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], key: value}}


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(states: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)
