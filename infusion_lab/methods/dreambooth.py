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
from .baseline import Baseline, BaselineObjective, after_rare_word
from .method import Customised, Learned, Subject

RANK = 4


@dataclass(frozen=True)
class DreamBooth(Baseline):
    """The whole UNet, with prior preservation: the base model's own class pictures are learned beside the photos."""

    key: ClassVar = "dreambooth"
    title: ClassVar = "DreamBooth"
    joint: ClassVar = True

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        unet = model.denoiser.unet.requires_grad_(True)
        trained = [ParameterGroup(dict(unet.named_parameters()))]
        shown = self.materials(studio, model, subjects, after_rare_word(subjects))
        return BaselineObjective(model, shown, self.recipe.batch_size, trained, unet.state_dict)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        model.denoiser.unet.load_state_dict(one.full(studio.base.denoiser.device))
        return Customised(model, after_rare_word(one.subjects))


@dataclass(frozen=True)
class PlainDreamBooth(DreamBooth):
    """DreamBooth without class pictures, as diffusers' script trains unless told otherwise."""

    key: ClassVar = "dreambooth-plain"
    title: ClassVar = "DreamBooth, no prior"


@dataclass(frozen=True)
class DreamBoothLora(Baseline):
    """LoRA of rank 4 on every attention layer's projections, everything else frozen."""

    key: ClassVar = "lora"
    title: ClassVar = "DreamBooth-LoRA"
    joint: ClassVar = True

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        unet = _with_adapter(model, seed)
        trained = [ParameterGroup({name: p for name, p in unet.named_parameters() if p.requires_grad})]
        shown = self.materials(studio, model, subjects, after_rare_word(subjects))
        return BaselineObjective(model, shown, self.recipe.batch_size, trained, lambda: get_peft_model_state_dict(unet))

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        set_peft_model_state_dict(_with_adapter(model), one.full(studio.base.denoiser.device))
        return Customised(model, after_rare_word(one.subjects))


def _with_adapter(model: EmbeddedModel, seed: int = 0) -> Any:
    """The model's UNet with a fresh adapter, whose weights alone need gradients."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        init_lora_weights="gaussian",
        target_modules=["to_k", "to_q", "to_v", "to_out.0"],
    )
    unet = model.denoiser.unet
    with torch.random.fork_rng():  # peft draws from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(config)
    return unet
