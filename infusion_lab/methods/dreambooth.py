"""DreamBooth (arXiv 2208.12242) and its LoRA variant, as diffusers' train_dreambooth.py and ..._lora.py train them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from infusion_core.embedded.model import EmbeddedModel

from ..studio import Studio, customisable
from .fitting import batches, fit
from .method import Baseline, Customised, Learned, Snapshot, Subject, full

RANK = 4


def marked_class(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Per subject the rare word before the class word: ``v1 circle``."""
    return tuple(f"{s.mark} {s.word}" for s in subjects)


@dataclass(frozen=True)
class DreamBooth(Baseline):
    """The whole UNet, with prior preservation: the base model's own class pictures are learned beside the photos."""

    key: ClassVar = "dreambooth"
    title: ClassVar = "DreamBooth"
    joint: ClassVar = True

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        model = customisable(studio.base)
        unet = model.denoiser.unet.requires_grad_(True)
        groups = [{"params": list(unet.parameters()), "lr": self.recipe.learning_rate}]
        draw = batches(studio, model, subjects, marked_class(subjects), self.recipe)
        return fit(model, groups, draw, subjects, unet.state_dict, marks, seed)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        (one,) = learned
        model = customisable(studio.base)
        model.denoiser.unet.load_state_dict(full(one, studio.base.denoiser.device))
        return Customised(model, marked_class(one.subjects))


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

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        model = customisable(studio.base)
        unet = _with_adapter(model, seed)
        trained = [p for p in unet.parameters() if p.requires_grad]
        groups = [{"params": trained, "lr": self.recipe.learning_rate}]
        draw = batches(studio, model, subjects, marked_class(subjects), self.recipe)
        return fit(model, groups, draw, subjects, lambda: get_peft_model_state_dict(unet), marks, seed)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        (one,) = learned
        model = customisable(studio.base)
        set_peft_model_state_dict(_with_adapter(model), full(one, studio.base.denoiser.device))
        return Customised(model, marked_class(one.subjects))


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
