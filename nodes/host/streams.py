"""The two streams in the host: conditionings that name a concept run twice, as base rows and as concept rows.

Base rows are a twin of the conditioning with strength 0: they ride in the same batch, supply query inputs and are
weighed with nothing. Where that could disturb another node's patches, they run in a pass of their own first. Keys need
no care: both read the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...infusion_core.schedule import NEVER
from .attention import PASS, check_replacers, layers_of
from .conds import Conds, base_of, brings_texts, entries_of, patches_rows, twinned, weighed_by_strength
from .memory import mentions_in
from .moment import Moment
from .options import with_option
from .passes import TwoStreamPass
from .patch import Patch
from .run import QUIET, RUN, Run
from .trajectory import TRAJECTORY, Trajectory, random_state, restore, rewind
from .unused import warn_of_unused

Predict = Callable[[Conds, Tensor, TwoStreamPass | None], Any]  # a prediction of lists of conditionings at a latent
Draw = Callable[[Trajectory | None, Any], Any]  # a sampling run, with a callback for its steps


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
        return {
            WrappersMP.SAMPLER_SAMPLE: self.sampling,
            WrappersMP.CALC_COND_BATCH: self.prediction,
            WrappersMP.DIFFUSION_MODEL: self.network,
        }

    def sampling(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One sampling run; with base latent `own` the base stream's comes first."""
        self.patch.memory.begin_run()
        options, conds = extra_args["model_options"], list(guider.conds.values())
        found = [text for _, cond in entries_of(conds) for text in mentions_in(cond, self.patch.memory)]
        run = Run(named=frozenset[str]().union(*map(self.patch.named, found)))

        def draw(trajectory: Trajectory | None, shown: Any) -> Any:
            known = with_option(with_option(options, RUN, run), TRAJECTORY, trajectory)
            own_noise = noise if trajectory is None else noise.clone()
            return executor(guider, sigmas, {**extra_args, "model_options": known}, shown, own_noise, *args, **kwargs)

        if run.named or brings_texts(options, conds):
            if self.patch.any_in("value"):
                check_replacers(self.patch.base.sites, options["transformer_options"])
            drawn = self._draw(draw, run, guider, noise.device, callback)
        else:
            drawn = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        if QUIET not in options["transformer_options"]:
            asked = [c for name, c in guider.conds.items() if name != "negative"]  # whose words were to be drawn
            warn_of_unused(self.patch, run, asked)
        return drawn

    def prediction(
        self, executor: Any, model: Any, conds: Conds, x: Tensor, timestep: Tensor, model_options: dict[str, Any],
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One prediction at one noise level."""

        def predict(lists: Conds, latent: Tensor, state: TwoStreamPass | None) -> Any:
            options = model_options if state is None else with_option(model_options, PASS, state)
            return executor(model, lists, latent, timestep, options, *args, **kwargs)

        comfy.model_management.throw_exception_if_processing_interrupted()
        options = model_options["transformer_options"]
        run: Run = options.get(RUN) or Run()
        trajectory: Trajectory | None = options.get(TRAJECTORY)
        base_x, recording = x, False
        if trajectory is not None:
            recording = trajectory.recording
            base_x = trajectory.follow(x, timestep)
        plain, scout = None, None
        if (trajectory is None or recording) and brings_texts(model_options, conds) and not run.knows(conds):
            scout = TwoStreamPass(self.patch, run, {}, {}, len(x), scouting=True)
            plain = predict(conds, x, scout)
            run.has_seen(conds)
        moment = Moment(self.patch, run, float(timestep.max()), model.model_sampling)
        rows = {} if recording else moment.concept_rows(conds, own=trajectory is not None)
        if not rows:
            return predict(conds, x, None) if plain is None else plain
        state = TwoStreamPass(self.patch, run, moment.acting, rows, len(x))
        if scout is not None:
            state.queries = scout.queries
            return predict(conds, x, state)
        return _two_streams(predict, state, conds, x, base_x, model_options)

    def network(
        self, executor: Any, x: Any, timesteps: Any, context: Any, y: Any, control: Any,
        transformer_options: dict[str, Any], *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """One forward of the network: its pass takes place round the patches of other nodes, hooks' included."""
        state: TwoStreamPass | None = transformer_options.get(PASS)
        if state is not None:
            patches = transformer_options.get("patches", {})
            patches = {**patches, "attn2_patch": [state.around(patches.get("attn2_patch", ()))]}
            if self.patch.any_in("output"):
                state.layers = layers_of(executor.class_obj)
                patches["attn2_output_patch"] = [state.outputs, *patches.get("attn2_output_patch", ())]
            transformer_options = {**transformer_options, "patches": patches}
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)

    def _draw(self, draw: Draw, run: Run, guider: Any, device: torch.device, callback: Any) -> Any:
        """A sampling run; with base latent `own` two, unless the first shows that nothing is to be done."""
        own = self.patch.base_latent == "own"
        if not own or all(self.patch.concepts[key].map_window == NEVER for key in run.named or self.patch.concepts):
            return draw(None, callback)
        trajectory, state = Trajectory(), random_state(device)
        base = draw(trajectory, None if run.named else callback)
        if not run.named and not any(map(self.patch.acting, run.regions.values())):
            return base
        restore(state)
        rewind(guider)
        trajectory.recording = False
        return draw(trajectory, callback)


def _two_streams(
    predict: Predict, state: TwoStreamPass, conds: Conds, x: Tensor, base_x: Tensor, model_options: Mapping[str, Any]
) -> Any:
    """The concept stream's prediction, after or together with the base stream's."""
    replaced = {entry for entry, rows in state.concept_rows.items() if any(rows.replaced)}
    if not replaced:
        return predict(conds, x, state)
    watched = patches_rows(model_options, conds)
    if base_x is x and not watched and weighed_by_strength(conds, replaced, model_options):
        return predict(twinned(conds, replaced), x, state)
    predict(base_of(conds, replaced, whole=watched), base_x, state)
    return predict(conds, x, state)
