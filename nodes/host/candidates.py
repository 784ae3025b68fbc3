"""Epochs of a training drawn with the host's own sampling, alone and under guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...infusion_core.advisor import BASE, Setup
from ...infusion_core.collapse import overlap
from ...infusion_core.dreamblend import BlendSettings
from ...infusion_core.errors import InfusionError
from .blend import guide
from .model import base_of
from .observer import observe

SAMPLER, SCHEDULER = "dpmpp_2m", "karras"
Pair = tuple[Any, Any]  # MODEL and CLIP


@dataclass(frozen=True)
class Candidates:
    """What may draw, and how.

    Attributes:
        model, clip, vae: of the checkpoint.
        size: of the pictures, px.
        count: pictures of each prompt.
        steps, cfg, seed: of the sampling.
    """

    model: Any
    clip: Any
    vae: Any
    size: int
    count: int
    steps: int
    cfg: float
    seed: int

    def loaded(self, name: str) -> Pair:
        """MODEL and CLIP of an epoch, or of the checkpoint itself.

        Raises:
            InfusionError: there is no such file, or it is a pickle.
        """
        if name == BASE:
            return self.model, self.clip
        path = folder_paths.get_full_path("loras", name)
        if path is None or Path(path).suffix.lower() != ".safetensors":
            raise InfusionError(
                f"models/loras has no .safetensors file {name!r}; write one name per line, as listed there"
            )
        lora = comfy.utils.load_torch_file(path, safe_load=True)
        pair: Pair = comfy.sd.load_lora_for_models(self.model, self.clip, lora, 1.0, 1.0)
        return pair

    def watched(self, name: str, prompt: str, subject: str, others: Sequence[str]) -> tuple[Tensor, float]:
        """Pictures (count, H, W, 3) of a prompt, and how much other words attend where the subject does."""
        model, clip, maps = observe(*self.loaded(name), [subject, *others])
        pictures = self.drawn(model, clip, prompt)
        return pictures, float(overlap(maps, subject, others).mean())

    def guided(self, setup: Setup, prompt: str) -> Tensor:
        """Pictures (count, H, W, 3) of a prompt by one epoch under another's guidance."""
        assert setup.early is not None
        (early, early_clip), (late, clip) = self.loaded(setup.early), self.loaded(setup.late)
        own = self._texts(early_clip, prompt)
        model = guide(late, early, base_of(late).sites, BlendSettings(alpha=setup.alpha), *own)
        return self.drawn(model, clip, prompt)

    def _texts(self, clip: Any, prompt: str) -> list[Any]:
        return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]

    def drawn(self, model: Any, clip: Any, prompt: str) -> Tensor:
        """Pictures (count, H, W, 3) of a prompt by a MODEL and its CLIP."""
        channels = model.get_model_object("latent_format").latent_channels
        empty = torch.zeros(self.count, channels, self.size // 8, self.size // 8)
        noise = comfy.sample.prepare_noise(empty, self.seed)
        samples = comfy.sample.sample(
            model, noise, self.steps, self.cfg, SAMPLER, SCHEDULER, *self._texts(clip, prompt), empty,
            disable_pbar=True, seed=self.seed,
        )  # fmt: skip
        pictures: Tensor = self.vae.decode(samples)
        return pictures
