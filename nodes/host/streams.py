"""The two streams in the host: conditionings that name a concept run twice, as base rows and as concept rows.

Base rows are a twin of the conditioning with strength 0: they ride in the same batch, supply query inputs and are
weighed with nothing, so neither the sampler nor other patches notice. Keys need no care: both read the same text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.errors import InfusionError
from ...infusion_core.noise import bin_of
from .binding import spans_in
from .passes import KEY, BaseRow, Bound, Entry, Pass
from .patch import Active, Patch, check_replacers

TRAJECTORY = "infusion_trajectory"
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
                "base latent 'own' needs a sampler with fixed steps; this one adapts them to the picture: "
                "choose another sampler or base latent 'shared'"
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
        state = Pass({s.name: s for s in patch.base.sites}, bound, replacing)
        if not replacing:
            return run(conds, x, state)
        base_rows = _base_rows(conds, bound)
        if trajectory is None and _fits_one_batch(base_rows, model_options):
            return run([[*c, *b] if b else c for c, b in zip(conds, base_rows, strict=True)], x, state)
        run(base_rows, base_x, state)
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


def _base_rows(conds: Conds, bound: Mapping[Entry, Bound]) -> Conds:
    """Twins of the bound conditionings, by list; a list without any is None."""
    return [
        [
            {**cond, "uuid": BaseRow.of(cond["uuid"]), "strength": 0.0}
            for cond in entries or []
            if (index, cond["uuid"]) in bound
        ]
        or None
        for index, entries in enumerate(conds)
    ]


def _fits_one_batch(base_rows: Conds, model_options: Mapping[str, Any]) -> bool:
    """Whether the host runs base rows with their concept rows or before them, and weighs them with their strength.

    A conditioning set as default is weighed by what the others leave over, one with GLIGEN boxes runs alone, and
    several GPUs share out the rows.
    """
    twins = [twin for entries in base_rows for twin in entries or []]
    return "multigpu_clones" not in model_options and not any("default" in t or "gligen" in t for t in twins)


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
