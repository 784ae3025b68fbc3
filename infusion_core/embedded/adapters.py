"""Models that training has changed: a LoRA file on a base, or a full model of its own."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..advisor import BASE
from ..concepts import LARGEST_SCALE
from ..errors import InfusionError, printable
from ..lora_file import (
    NETWORKS,
    Change,
    LoraFile,
    Module,
    Part,
    alpha_of,
    alphas_of,
    module_key,
    original_paths,
    parse_lora,
)
from .model import EmbeddedModel, load_model
from .model_json import check, read_json, real, whole
from .single_file import NETWORKS as CHECKPOINT_NETWORKS
from .text import TextPath
from .unet import UNetDenoiser
from .weights import weights_of


def load_variant(asked: str, base: EmbeddedModel, config: Path | None = None) -> EmbeddedModel:
    """What training made of a base model.

    Args:
        asked: ``base``; a LoRA file, or ``FILE:strength``; or a full model, a diffusers folder or a checkpoint.
        base: what a LoRA is put on.
        config: for a checkpoint, see `load_model`.

    Raises:
        InfusionError: it cannot be read, changes nothing of the UNet, or is of another kind of model.
    """
    if asked == BASE:
        return base
    check_there(asked)
    path, strength = split_strength(asked)
    if path.is_dir() or any(name.startswith(CHECKPOINT_NETWORKS["unet"]) for name in weights_of([path]).shapes):
        if strength != 1:
            raise InfusionError(f"{path} is a full model and has no strength; leave {strength:g} out")
        model = load_model(str(path), str(base.denoiser.device), config)
        if model.denoiser.base != base.denoiser.base:
            raise InfusionError(
                f"{path} is another kind of model than {base.name}; give one trained from the same base"
            )
        return model
    lora = read_lora(path)
    if "unet" not in lora.parts:
        raise InfusionError(
            f"{path} changes text encoders alone, so attention maps stay the base's; give a LoRA with a UNet part"
        )
    return with_lora(base, lora, path.name, strength)


def check_there(asked: str) -> None:
    """See that there is something at the path of what `load_variant` is asked for.

    Raises:
        InfusionError: there is nothing.
    """
    path, _ = split_strength(asked)
    if asked != BASE and not path.exists():
        raise InfusionError(f"{path} is missing; give a LoRA file, or a full model")


def split_strength(text: str) -> tuple[Path, float]:
    """The file and the strength that ``FILE`` or ``FILE:strength`` means.

    Raises:
        InfusionError: the strength is not a number.
    """
    file, colon, strength = text.rpartition(":")
    if not colon or os.path.exists(text):  # noqa: PTH110, a path's own raises for a name that is too long
        file, strength = text, "1"
    try:
        scale = float(strength)
    except ValueError:
        raise InfusionError(f"the strength in {text!r} is not a number; write FILE.safetensors:0.8") from None
    if not abs(scale) <= LARGEST_SCALE:
        raise InfusionError(f"the strength in {text!r} must be a number up to {LARGEST_SCALE:g}")
    return Path(file), scale


def read_lora(file: Path) -> LoraFile:
    """A LoRA file.

    Raises:
        InfusionError: it is missing, damaged, or no LoRA file.
    """
    if not file.is_file():
        raise InfusionError(f"{file} is {'a folder' if file.is_dir() else 'missing'}; give a LoRA's .safetensors file")
    held = weights_of([file])
    tensors = held.read({name: name for name in held.shapes}, torch.float32)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    config = file.parent / "adapter_config.json"  # beside peft's own files
    try:
        alphas = alphas_of(metadata)
        if file.name == "adapter_model.safetensors" and config.is_file():
            told = read_json(config)
            check(config, told, {"lora_alpha": real(0, 1e6), "r": whole(1, 2**16)})
            alphas |= {"unet": alpha} if (alpha := alpha_of(told)) is not None else {}
        return parse_lora(tensors, alphas)
    except InfusionError as error:
        raise InfusionError(f"{file}: {error}") from error


def with_lora(model: EmbeddedModel, lora: LoraFile, name: str, strength: float = 1.0) -> EmbeddedModel:
    """A copy of a model with a LoRA in its weights; networks that it leaves alone are shared.

    Args:
        model: the base model, which stays as it is.
        lora: what changes.
        name: of the LoRA, for messages.
        strength: factor of every change.

    Raises:
        InfusionError: the file changes modules that this model does not have, or has in another size.
    """
    networks = [model.denoiser.unet, *(encoder.model for encoder in model.text.encoders)]
    own = dict(zip(NETWORKS, networks, strict=False))
    copies: dict[Part, Any] = {part: copy.deepcopy(network) for part, network in own.items() if part in lora.parts}
    modules = dict(_modules(copies))
    unknown = [module for module in lora.changes if module not in modules]
    if unknown:
        raise InfusionError(
            f"{name} changes {len(unknown):,} modules that the model {model.name} does not have, such as "
            f"{printable(unknown[0][1])} of its {unknown[0][0]}; it was made for another kind of model"
        )
    for key, change in lora.changes.items():
        _add(modules[key], change, strength, f"{name} ({key[1]})")
    encoders = [
        replace(encoder, model=copies.get(part, encoder.model))
        for part, encoder in zip(NETWORKS[1:], model.text.encoders, strict=False)
    ]
    unet = copies.get("unet", model.denoiser.unet)
    denoiser = UNetDenoiser(unet, model.denoiser.sigmas, model.denoiser.prediction)
    return replace(model, denoiser=denoiser, text=TextPath(encoders, model.text.extras))


def _modules(networks: Mapping[Part, Any]) -> Iterator[tuple[Module, torch.nn.Module]]:
    """Every module with a weight under every name that a file may give it."""
    for part, network in networks.items():
        for path, module in network.named_modules():
            if getattr(module, "weight", None) is None:
                continue
            paths = [path]
            if part == "unet":
                paths += original_paths(path, network.config["layers_per_block"])
            for name in paths:
                yield (part, module_key(name)), module


@torch.no_grad()
def _add(module: Any, change: Change, strength: float, where: str) -> None:
    try:
        added, bias = change.of_weight(module.weight.shape), change.diff_b
        if bias is not None:
            if module.bias is None:
                raise ValueError("it has no bias")
            bias = bias.float().reshape(module.bias.shape)
    except (RuntimeError, ValueError) as error:  # torch's for shapes
        raise InfusionError(
            f"{where} does not fit this model ({printable(str(error))}); it was made for another kind, or is damaged"
        ) from error
    if added is not None:
        module.weight += strength * added.to(module.weight)
    if bias is not None:
        module.bias += strength * bias.to(module.bias)
