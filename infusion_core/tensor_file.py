"""safetensors as bytes, with metadata in a fixed order: equal contents give equal files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, struct.error)  # what `read_tensors` raises


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file; the library writes metadata in random order, here they are sorted."""
    data: bytes = save(dict(tensors), dict(metadata))
    (length,) = struct.unpack_from("<Q", data)
    header = _header(data)
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, struct.error: it is damaged or something else (`UNREADABLE`).
    """
    tensors = load(data)
    return tensors, _header(data).get("__metadata__") or {}


def _header(data: bytes) -> dict[str, dict[str, str]]:
    """The JSON header of safetensors bytes that `safetensors` itself has accepted."""
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, dict[str, str]] = json.loads(data[8 : 8 + length])
    return header
