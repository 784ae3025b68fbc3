"""What a MODEL, with everything patched on it, says about given noised latents: the host's side of the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError
from .mentions import MENTIONS
from .model import base_of
from .run import QUIET

Encoded = list[Any]  # a prompt as the host has it: states and options of each part


class HostPredictor:
    """A MODEL as `infusion_core.metrics.fisher.NoisePredictor`.

    The host prepares it as for sampling, so LoRA, Infusion and every other patch on the network are at work. Guidance
    is not: what is compared is the conditional prediction.

    Args:
        model: MODEL.
        prompts: encoded.
        on_row: called after each row.
    """

    def __init__(self, model: Any, prompts: Sequence[Encoded], on_row: Callable[[], None]) -> None:
        self._model, self._prompts, self._on_row = model.clone(), prompts, on_row
        self._model.model_options["transformer_options"][QUIET] = True

    def __call__(self, noised: Tensor, sigma: Tensor, prompt: int) -> Tensor:
        """The noise the model sees, row by row: a host's patches know one noise level at a time."""
        order = sigma.argsort(descending=True)
        visit = _Visit(noised[order], sigma[order])
        guider = comfy.samplers.CFGGuider(self._model)
        guider.inner_set_conds({"positive": self._prompts[prompt]})
        blank = torch.zeros_like(noised[:1])
        levels = torch.cat([sigma[order], torch.zeros(1)])
        guider.sample(blank, blank, visit, levels, callback=lambda *_: self._on_row(), disable_pbar=True, seed=0)
        said = torch.empty_like(noised)
        said[order] = torch.cat(visit.said)
        return said


class _Visit(comfy.samplers.Sampler):  # type: ignore[misc]
    """A sampler that goes nowhere: it shows the model one given latent after the other and notes what noise it sees."""

    def __init__(self, noised: Tensor, sigma: Tensor) -> None:
        self.noised, self.sigma = noised, sigma
        self.said: list[Tensor] = []

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
               *args: Any, **kwargs: Any) -> Tensor:  # fmt: skip
        self.said = []  # base latent 'own' samples twice
        conds = [model_wrap.conds["positive"]]
        for step, (row, level) in enumerate(zip(self.noised.to(noise), self.sigma.to(noise), strict=True)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            x, s = row[None], level[None]
            (denoised,) = comfy.samplers.calc_cond_batch(
                model_wrap.inner_model, conds, x, s, extra_args["model_options"]
            )
            self.said.append(((x - denoised) / level).float().cpu())
            if callback is not None:
                callback(step, denoised, x, len(self.noised))
        return noise


def comparable(base: Any, custom: Any) -> Tensor:
    """The training noise levels, ascending, (T,), of two MODELs of one family.

    Raises:
        InfusionError: a model is not supported, or they are of different families.
    """
    one, other = base_of(base), base_of(custom)
    if one.architecture != other.architecture:
        raise InfusionError(
            f"the base model is {one.architecture} and the customised one {other.architecture}; give two of one family"
        )
    sigmas: Tensor = base.get_model_object("model_sampling").sigmas
    return sigmas.float().cpu()


def encode(clip: Any, prompts: Sequence[str]) -> list[Encoded]:
    """Prompts as the host has them."""
    return [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]


def names_concept(encoded: Encoded) -> bool:
    """Whether a prompt names a concept that is loaded on the CLIP it was encoded with."""
    found = (text for _, options in encoded for text in options.get(MENTIONS, ()))
    return any(mentions.of_concepts for mentions in found if mentions is not None)
