"""DreamBooth (arXiv 2208.12242) and its LoRA variant, as diffusers' train_dreambooth.py and ..._lora.py train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.training.objective import ParameterGroup

from ..studio import Studio, customisable
from .baseline import Baseline, BaselineObjective
from .method import Customised, Learned, Recipe, Subject
from .parts import PARTS, parameters_of


@dataclass(frozen=True)
class DreamBooth(Baseline):
    """The UNet or a part of it, with prior preservation: the base model's own class pictures are learned beside the
    photos."""

    family: ClassVar = "dreambooth"
    name: ClassVar = "DreamBooth"
    joint: ClassVar = True

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        trained = {name: p.requires_grad_() for name, p in parameters_of(model, self.recipe.part).items()}
        shown = self.materials(studio, model, subjects, self.phrases(subjects))
        return BaselineObjective(model, shown, self.recipe, [ParameterGroup(trained)], lambda: trained)

    @torch.no_grad()
    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        tensors = one.full(studio.base.denoiser.device)
        for name, weight in parameters_of(model, self.recipe.part).items():
            weight.copy_(tensors[name])
        return Customised(model, self.phrases(one.subjects))


@dataclass(frozen=True)
class PlainDreamBooth(DreamBooth):
    """DreamBooth without class pictures, as diffusers' script trains unless told otherwise."""

    family: ClassVar = "dreambooth-plain"
    name: ClassVar = "DreamBooth, no prior"


@dataclass(frozen=True)
class DreamBoothLora(Baseline):
    """LoRA on attention layers' projections, everything else frozen."""

    family: ClassVar = "lora"
    name: ClassVar = "DreamBooth-LoRA"
    joint: ClassVar = True

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        unet = with_adapter(model, self.recipe, seed)
        trained = [ParameterGroup({name: p for name, p in unet.named_parameters() if p.requires_grad})]
        shown = self.materials(studio, model, subjects, self.phrases(subjects))
        return BaselineObjective(model, shown, self.recipe, trained, lambda: get_peft_model_state_dict(unet))

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        set_peft_model_state_dict(with_adapter(model, self.recipe), one.full(studio.base.denoiser.device))
        return Customised(model, self.phrases(one.subjects))


def with_adapter(model: EmbeddedModel, recipe: Recipe, seed: int = 0) -> Any:
    """The model's UNet with a fresh adapter, whose weights alone need gradients."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.rank,
        init_lora_weights="gaussian",
        target_modules=PARTS[recipe.part],
    )
    unet = model.denoiser.unet
    with torch.random.fork_rng():  # peft draws from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(config)
    return unet
