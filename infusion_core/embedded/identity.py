"""What photos and models are by their content, so that a resumed run can tell that it was given the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn

from .model import EmbeddedModel

SAMPLES = 64  # numbers of each tensor that a model's hash looks at


def hash_of_photo(photo: Image.Image) -> str:
    """SHA-256 of a photo as it was read: its size and its pixels, whatever its file is."""
    return hashlib.sha256(f"{photo.mode} {photo.size} ".encode() + photo.tobytes()).hexdigest()


def hash_of_model(model: EmbeddedModel) -> str:
    """SHA-256 of a base model, quick enough for the largest.

    Of its settings it reads what training depends on, and of each tensor of its UNet, VAE and text encoders the name,
    the shape, and `SAMPLES` numbers spread evenly over it, in half precision: the same on every device, from a folder
    or from one file. Another fine-tune is told by them; a change to a few single numbers may not be.
    """
    found = hashlib.sha256(f"{model.denoiser.prediction} {model.resolution} ".encode())
    for name, tensor in _tensors(model):
        found.update(f"{name} {tuple(tensor.shape)} ".encode())
        found.update(_sample(tensor).numpy().tobytes())
    return found.hexdigest()


def _tensors(model: EmbeddedModel) -> Iterator[tuple[str, Tensor]]:
    yield "sigmas", model.denoiser.sigmas
    networks: list[nn.Module] = [model.denoiser.unet, model.vae, *(e.model for e in model.text.encoders)]
    for index, network in enumerate(networks):
        for name, tensor in network.state_dict().items():
            yield f"{index}.{name}", tensor


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLES` numbers of a tensor, spread evenly, (n,), fp16."""
    flat = tensor.detach().reshape(-1)
    places = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), SAMPLES), dtype=torch.float64).long()
    return flat[places.to(flat.device)].cpu().to(torch.float16)
