"""What things are, by their content; the lab keeps what it finds under such hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from PIL import Image
from torch import Tensor, nn


def digest(*parts: object) -> str:
    """A short hash of things whose ``repr`` tells them in full."""
    return _short(hashlib.sha256(repr(parts).encode()))


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return _short(found)


def digest_of_networks(networks: Iterable[nn.Module]) -> str:
    """A short hash of the weights of networks."""
    return digest(*(digest_of_tensors(network.state_dict()) for network in networks))


def digest_of_pictures(pictures: Iterable[Image.Image]) -> str:
    """A short hash of pictures."""
    return digest(*((p.mode, p.size, hashlib.sha256(p.tobytes()).hexdigest()) for p in pictures))


def _short(found: hashlib._Hash) -> str:
    return found.hexdigest()[:10]
