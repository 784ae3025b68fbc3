"""DINO from a folder on disk. ComfyUI ships transformers, but loads no first-generation DINO itself."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
from torch import Tensor

from ..infusion_core.errors import InfusionError, printable
from ..infusion_core.metrics.pretrained import load_whole

ADVICE = "give the folder of a local copy of facebook/dino-vits16 (config.json and model.safetensors)"
WIDTH, PATCH = 384, 16  # ViT-S/16


class Dino:
    """A vision transformer as `infusion_core.metrics.similarity.ImageEncoder`; the class token is the embedding.

    Args:
        folder: in transformers' format; nothing is downloaded.

    Raises:
        InfusionError: there is no such model.
    """

    def __init__(self, folder: str) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise InfusionError(f"{folder} holds no config.json, so it is no DINO; {ADVICE}")
        try:
            from transformers import AutoModel

            network = load_whole(AutoModel, folder)
        except (ImportError, InfusionError) as error:
            raise InfusionError(f"cannot load a DINO from {folder} ({printable(str(error), 300)}); {ADVICE}") from error
        self._device = comfy.model_management.get_torch_device()
        self._network = network.to(self._device).float().eval()

    def __call__(self, pixels: Tensor) -> Tensor:
        """The class token of pictures (N, 3, H, W) that are prepared for it, (N, width)."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        states: Tensor = self._network(pixels.to(self._device)).last_hidden_state
        return states[:, 0]

    @property
    def is_the_papers(self) -> bool:
        """Whether it has the size of ViT-S/16, which published figures are made with."""
        config = self._network.config
        return (getattr(config, "hidden_size", 0), getattr(config, "patch_size", 0)) == (WIDTH, PATCH)
