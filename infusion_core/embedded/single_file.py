"""One-file checkpoints in the original layout, read by diffusers' own single-file loading; the hub is never asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InfusionError, printable
from .model_json import Rule, read_json
from .weights import PICKLES, Weights, account, empty_network, fill, weights_of


@dataclass(frozen=True)
class Kind:
    """A family of checkpoints, told apart by how a file names its text encoder.

    Attributes:
        name: for messages.
        text: prefixes of the text encoders' tensors, by diffusers' name of the encoder.
        repository: whose configs fit every model of the family; None if none does.
    """

    name: str
    text: dict[str, str]
    repository: str | None


KINDS = (
    Kind(
        "Stable Diffusion 1.x",
        {"text_encoder": "cond_stage_model.transformer."},
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Kind("Stable Diffusion 2.x", {"text_encoder": "cond_stage_model.model."}, None),  # some predict noise, others v
    Kind(
        "Stable Diffusion XL",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
)
NETWORKS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


def open_single_file(file: Path, config: Path | None, dtype: torch.dtype) -> SingleFile:
    """Look at a checkpoint's header and find the configs that belong to it.

    Args:
        file: safetensors, in the original layout.
        config: a diffusers folder of the same kind of model, for its configs and tokenizer; by default the one
            that lies in the local hub cache.
        dtype: of the networks.

    Raises:
        InfusionError: not such a file, no config on this machine, or the two do not fit together.
    """
    if file.suffix.lower() in PICKLES:
        raise InfusionError(f"{file} is a pickle, which can run code when it is opened; give a .safetensors version")
    held = weights_of([file])
    kind = _kind(file, held.shapes)
    folder = config or _cached_config(file, kind)
    if not (folder / "model_index.json").is_file():
        raise InfusionError(
            f"{folder} is not a diffusers folder (it has no model_index.json); give one of {kind.name} (--config)"
        )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if "v_pred" in held.shapes and scheduler.get("prediction_type") != "v_prediction":
        raise InfusionError(f"{file} predicts v, the config in {folder} does not; give a config that does (--config)")
    if (folder / "text_encoder_2").is_dir() != ("text_encoder_2" in kind.text):
        raise InfusionError(f"{file} is of {kind.name}, the config in {folder} is not; give one that is (--config)")
    return SingleFile(file, folder, kind, held, dtype)


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint whose header has been read.

    Attributes:
        file: the checkpoint.
        folder: of its configs and tokenizers.
        kind: of model.
        held: its tensors.
        dtype: of the networks.
    """

    file: Path
    folder: Path
    kind: Kind
    held: Weights
    dtype: torch.dtype

    def load(self, kind: Any, part: str, rules: Mapping[str, Rule]) -> Any:
        """A network of the checkpoint, every tensor accounted for before one is read.

        Args:
            kind: its class.
            part: diffusers' name of it.
            rules: of its config.

        Raises:
            InfusionError: the config is broken or another model's, or the file does not hold the network.
        """
        config = self.folder / part / "config.json"
        prefix = (NETWORKS | self.kind.text)[part]
        names = [name for name in self.held.shapes if name.startswith(prefix)]
        network = empty_network(kind, read_json(config), rules, config, len(names))
        wanted = sum(parameter.numel() for parameter in network.parameters())
        numbers = sum(math.prod(self.held.shapes[name]) for name in names)
        if numbers < wanted or (part == "unet" and numbers > wanted):
            raise InfusionError(
                f"the {part} in {self.file} holds {numbers:,} numbers, {config} asks for {wanted:,}; "
                "give the config of this model (--config), or get the file again"
            )
        shapes = {name: torch.empty(self.held.shapes[name], device="meta") for name in names}
        found = {name: tuple(tensor.shape) for name, tensor in self._converted(network, part, shapes).items()}
        own = account(network, found, f"{self.file} ({part})", config)
        tensors = self._converted(network, part, self.held.read({name: name for name in names}, self.dtype))
        return fill(network, {name: tensors[converted].contiguous() for name, converted in own.items()})

    def _converted(self, network: Any, part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of one network by diffusers' names, as its single-file loading converts them."""
        from diffusers.loaders import single_file_utils as convert

        prefix = (NETWORKS | self.kind.text)[part]
        converted: dict[str, Tensor]
        try:
            if part == "unet":
                converted = convert.convert_ldm_unet_checkpoint(tensors, network.config)
            elif part == "vae":
                converted = convert.convert_ldm_vae_checkpoint(tensors, network.config)
            elif prefix.endswith("transformer."):
                converted = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            else:
                converted = convert.convert_open_clip_checkpoint(network, tensors, prefix=prefix)
        except Exception as error:  # it expects every name and shape of such a checkpoint
            raise InfusionError(
                f"the {part} in {self.file} cannot be converted ({printable(f'{type(error).__name__}: {error}')}); "
                "get the file again, or give the config of this model (--config)"
            ) from error
        return converted


def _kind(file: Path, names: Collection[str]) -> Kind:
    for kind in KINDS:
        wanted = (*NETWORKS.values(), *kind.text.values())
        if all(any(key.startswith(prefix) for key in names) for prefix in wanted):
            return kind
    raise InfusionError(
        f"{file} is not a whole Stable Diffusion 1.x, 2.x or XL checkpoint (UNet, autoencoder and text encoder in the "
        "original layout); give such a file or a diffusers folder"
    )


def _cached_config(file: Path, kind: Kind) -> Path:
    """The configs of a family's first model, if diffusers or another program left them in the local hub cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    remedy = f"give --config FOLDER, a diffusers folder of {kind.name} (its .json and .txt files are enough)"
    if kind.repository is None:
        raise InfusionError(f"{file} does not say whether it predicts noise or v; {remedy}")
    try:
        folder = Path(snapshot_download(kind.repository, local_files_only=True))
    except LocalEntryNotFoundError:
        folder = None
    if folder is None or not (folder / "unet" / "config.json").is_file():
        raise InfusionError(
            f"{file} holds weights only, and no configs and tokenizer for them are on this machine; {remedy}, or once "
            f"run: hf download {kind.repository} --include '*.json' '*.txt'"
        )
    return folder
