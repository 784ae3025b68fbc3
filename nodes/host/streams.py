"""The two streams in the host: conditionings that name a concept run twice, as base rows and as concept rows.

Base rows are a twin of the conditioning with strength 0: they ride in the same batch, supply query inputs and are
weighed with nothing. Where that could disturb another node's patches, they run in a pass of their own first. Keys need
no care: both read the same text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.hooks import EnumHookType
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.concepts import LoadedConcept
from ...infusion_core.noise import bin_of
from ...infusion_core.schedule import NEVER
from .attention import PASS, check_replacers
from .mentions import spans_in
from .options import with_option
from .passes import ConceptRows, Mention, TwoStreamPass
from .patch import Patch, covers
from .rows import BaseRow, Entry
from .trajectory import TRAJECTORY, Trajectory, rewind

ROW_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
Conds = list[Any]  # a list of conditionings per guidance term, or None


class TwoStreams:
    """A patch at work: the host's wrappers.

    Attributes:
        patch: what is at work.
    """

    def __init__(self, patch: Patch) -> None:
        self.patch = patch

    def __deepcopy__(self, memo: object) -> TwoStreams:
        return self  # a host that copies wrappers copies the object of a bound method too

    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """The wrappers by kind."""
        return {WrappersMP.SAMPLER_SAMPLE: self.sampling, WrappersMP.CALC_COND_BATCH: self.prediction}

    def sampling(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One sampling run; with base latent `own` the base stream's comes first."""
        named = self._named(guider.conds)
        if not named:
            words = ", ".join(repr(c.residual.word) for c in self.patch.concepts.values())
            logging.info("Infusion: no prompt names %s; the picture is the unpatched model's", words)
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        if any(c.residual.layout == "value" for c in self.patch.concepts.values()):
            check_replacers(self.patch.base.sites, extra_args["model_options"]["transformer_options"])
        if self.patch.base_latent == "shared" or all(c.map_window == NEVER for c in named):
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        trajectory = Trajectory()
        extra_args = {**extra_args, "model_options": with_option(extra_args["model_options"], TRAJECTORY, trajectory)}
        with torch.random.fork_rng([noise.device] if noise.is_cuda else []):
            executor(guider, sigmas, extra_args, None, noise.clone(), *args, **kwargs)
        rewind(guider)
        trajectory.recording = False
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def prediction(
        self, executor: Any, model: Any, conds: Conds, x: Tensor, timestep: Tensor, model_options: dict[str, Any],
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction at one noise level."""

        def run(lists: Conds, latent: Tensor, state: TwoStreamPass | None) -> Any:
            options = model_options if state is None else with_option(model_options, PASS, state)
            return executor(model, lists, latent, timestep, options, *args, **kwargs)

        comfy.model_management.throw_exception_if_processing_interrupted()
        trajectory: Trajectory | None = model_options["transformer_options"].get(TRAJECTORY)
        if trajectory is not None and trajectory.recording:
            trajectory.record(x, timestep)
            return run(conds, x, None)
        base_x = x if trajectory is None else trajectory.replay(timestep)
        concept_rows = self._concept_rows(conds, float(timestep.max()), model.model_sampling, trajectory is not None)
        if not concept_rows:
            return run(conds, x, None)
        state = TwoStreamPass(self.patch, concept_rows, len(x))
        replaced = {entry for entry, rows in concept_rows.items() if rows.replaced}
        if not replaced:
            return run(conds, x, state)
        watched = _watched(model_options, conds)
        if trajectory is None and not watched and _weighed_by_strength(conds, replaced, model_options):
            return run(_twinned(conds, replaced), x, state)
        run(_base(conds, replaced, whole=watched), base_x, state)
        return run(conds, x, state)

    def _named(self, conds: Mapping[str, Any]) -> list[LoadedConcept]:
        """The concepts that some conditioning names and that are not switched off."""
        found = {key for c in conds.values() for cond in c or [] for key in spans_in(cond, self.patch.memory)}
        return [concept for key, concept in self.patch.concepts.items() if key in found and concept.strength]

    def _concept_rows(self, conds: Conds, sigma: float, sampling: Any, own: bool) -> dict[Entry, ConceptRows]:
        """Every conditioning on which concepts act at a noise level; `own`: the base stream has a latent of its own."""
        found: dict[Entry, ConceptRows] = {}
        for index, entries in enumerate(conds):
            for cond in entries or []:
                spans = spans_in(cond, self.patch.memory)
                named = {k: c for k, c in self.patch.concepts.items() if spans.get(k) and c.strength}
                injected = [
                    Mention(key, spans[key], _bin(concept.residual.bins, sigma, sampling))
                    for key, concept in named.items()
                    if covers(concept.window, sigma, sampling)
                ]
                # On a shared latent the base stream's maps are the row's own wherever no residual is added.
                replaced = bool(injected or own) and any(covers(c.map_window, sigma, sampling) for c in named.values())
                if injected or replaced:
                    length = int(cond["model_conds"]["c_crossattn"].cond.shape[1])
                    found[index, cond["uuid"]] = ConceptRows(injected, replaced, length)
        return found


def _twin(cond: Mapping[str, Any]) -> dict[str, Any]:
    """The base stream's twin of a conditioning."""
    return {**cond, "uuid": BaseRow.of(cond["uuid"]), "strength": 0.0}


def _twinned(conds: Conds, replaced: Collection[Entry]) -> Conds:
    """The lists with twins of conditionings at their end: the host takes the last rows first."""
    return [
        c and [*c, *(_twin(cond) for cond in c if (index, cond["uuid"]) in replaced)] for index, c in enumerate(conds)
    ]


def _base(conds: Conds, replaced: Collection[Entry], whole: bool) -> Conds:
    """The lists with twins in place of conditionings; without all others unless `whole`."""
    return [
        [
            _twin(cond) if (index, cond["uuid"]) in replaced else cond
            for cond in c or []
            if whole or (index, cond["uuid"]) in replaced
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


def _weighed_by_strength(conds: Conds, replaced: Collection[Entry], model_options: Mapping[str, Any]) -> bool:
    """Whether twins of strength 0 weigh nothing, and run with their conditionings or before them.

    A conditioning set as default is weighed by what the others leave over, one with GLIGEN boxes runs alone, and
    several GPUs share out the rows.
    """
    twinned = [cond for index, c in enumerate(conds) for cond in c or [] if (index, cond["uuid"]) in replaced]
    return "multigpu_clones" not in model_options and not any("default" in c or "gligen" in c for c in twinned)


def _bin(bins: int, sigma: float, sampling: Any) -> int:
    return int(bin_of(torch.tensor([sigma]), sampling.sigmas.float().cpu(), bins)) if bins > 1 else 0
