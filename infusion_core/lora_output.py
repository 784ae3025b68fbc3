"""A trained LoRA as the file that kohya's trainer writes, which every loader of LoRA reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import InfusionError, printable
from .lora import DOWN
from .residual_metadata import MODELSPEC_ARCHITECTURES
from .residual_rules import LONGEST_TEXT
from .residuals import Base
from .tensor_file import tensor_bytes
from .thumbnails import thumbnail_url

LoraStorage = Literal["fp16", "bf16", "fp32"]
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}  # as kohya names base models
_KOHYAS = {  # its names for what a run's record tells
    "steps": "ss_steps", "lr": "ss_learning_rate", "batch": "ss_total_batch_size", "images": "ss_num_train_images",
    "seed": "ss_seed", "resolution": "ss_resolution", "title": "ss_output_name",
}  # fmt: skip


@dataclass(frozen=True)
class TrainedLora:
    """What there is to write.

    Attributes:
        tensors: matrices by the names of a file, see `LoraSet`.
        alpha: of the whole change.
        base: of the model that it was trained on.
        phrase: what prompts say for the subject: ``sks cat``.
        facts: of the run, see `RunRecord.facts`.
        thumbnail: PNG or JPEG, or None.
    """

    tensors: Mapping[str, Tensor]
    alpha: float
    base: Base
    phrase: str
    facts: Mapping[str, str] = field(default_factory=dict)
    thumbnail: bytes | None = None

    @property
    def rank(self) -> int:
        """Of its matrices."""
        return next(tensor.shape[0] for name, tensor in self.tensors.items() if name.endswith(DOWN))


def lora_tensors(lora: TrainedLora, storage: LoraStorage = "fp16") -> dict[str, Tensor]:
    """The file's tensors by key.

    Raises:
        InfusionError: unknown storage, or a number that is not finite in it.
    """
    if storage not in get_args(LoraStorage):
        raise InfusionError(f"unknown storage {storage!r}; choose one of: {', '.join(get_args(LoraStorage))}")
    stored = {name: tensor.detach().cpu().to(_TYPES[storage]).contiguous() for name, tensor in lora.tensors.items()}
    wrong = next((name for name, tensor in stored.items() if not tensor.isfinite().all()), None)
    if wrong:
        raise InfusionError(f"{wrong} is not finite, so the LoRA is no use; train again at a lower learning rate")
    alphas = {
        f"{name.removesuffix(DOWN)}alpha": torch.tensor(lora.alpha) for name in lora.tensors if name.endswith(DOWN)
    }
    return stored | alphas


def lora_bytes(lora: TrainedLora, storage: LoraStorage = "fp16") -> bytes:
    """The file's bytes; equal LoRAs give equal bytes.

    Raises:
        InfusionError: see `lora_tensors`.
    """
    return tensor_bytes(lora_tensors(lora, storage), _metadata(lora))


def _metadata(lora: TrainedLora) -> dict[str, str]:
    base, architecture = lora.base, MODELSPEC_ARCHITECTURES.get(lora.base.architecture, lora.base.architecture)
    facts = {name: printable(text, LONGEST_TEXT) for name, text in lora.facts.items()}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": f"{lora.alpha:g}",
        "ss_base_model_version": _VERSIONS.get(base.architecture, base.architecture),
        "ss_v2": str(base.architecture == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "infusion",
        "modelspec.title": facts.get("title", lora.phrase),
        "modelspec.trigger_phrase": lora.phrase,
        "modelspec.prediction_type": "v" if base.prediction == "v_prediction" else "epsilon",
        **{_KOHYAS.get(name, f"infusion_{name}"): text for name, text in facts.items()},
    }
    if "resolution" in facts:
        metadata["modelspec.resolution"] = facts["resolution"]
    if lora.thumbnail is not None:
        metadata["modelspec.thumbnail"] = thumbnail_url(lora.thumbnail)
    return metadata
