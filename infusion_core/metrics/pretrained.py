"""Image and text encoders of a local folder in transformers' format: safetensors alone, and whole."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from ..errors import InfusionError

UNUSED = "pooler."  # a head that no measure reads; DINO's folders lack it


def load_whole(kind: Any, folder: Any) -> Any:
    """A network of a transformers class; nothing is downloaded, no pickle is opened.

    Raises:
        InfusionError: no such folder, no safetensors in it or damaged ones, or a part is left at its random start.
    """
    try:
        network, told = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
    ) as error:  # of every kind for a broken folder
        raise InfusionError(f"{error or type(error).__name__}; only .safetensors weights are read") from error
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(UNUSED))
    if missing:
        raise InfusionError(f"the weights in {folder} lack {len(missing)} tensors, the first is {missing[0]}")
    return network
