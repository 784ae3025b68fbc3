"""What nodes have put on a MODEL, as the host's options hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...infusion_core.errors import InfusionError
from .patch import patch_of


def with_option(model_options: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The model options with one more entry among the transformer options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], key: value}}


def described(patch: Any) -> str:
    """The module and name of a patch, so that a user knows whose it is."""
    owner = patch if hasattr(patch, "__name__") else type(patch)
    return f"{owner.__module__}.{owner.__name__}"


def is_foreign(patch: Any) -> bool:
    """Whether a patch is another node's."""
    return not str(getattr(patch, "__module__", "")).startswith(__package__)


def require_unpatched(model: Any) -> None:
    """Refuse a MODEL with patches on its network's blocks: training runs the network itself and would not obey them.

    LoRA and other weight patches, and object patches, are part of the network.

    Raises:
        InfusionError: names the first patch.
    """
    first = next(_block_patches(model.model_options), patch_of(model))
    if first is not None:
        raise InfusionError(
            f"{described(first)} patches this MODEL, and training cannot obey it; connect the MODEL from in front of "
            "that node (a LoRA may stay)"
        )


def _block_patches(model_options: Mapping[str, Any]) -> Iterator[Any]:
    options = model_options.get("transformer_options", {})
    for patches in options.get("patches", {}).values():
        yield from patches
    for replacers in options.get("patches_replace", {}).values():
        yield from replacers.values()
    if model_options.get("model_function_wrapper") is not None:
        yield model_options["model_function_wrapper"]
