"""The base model with what baselines need of it: own copies, class pictures, the covariance of text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from infusion_core.atomic import write_atomic
from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.text import TextPath
from infusion_core.embedded.unet import UNetDenoiser

from .identity import digest, digest_of_networks

CLASS_SEED = 500_000  # of the first class picture; no study draws from these


def customisable(base: EmbeddedModel) -> EmbeddedModel:
    """A copy of a model with a UNet and a text encoder of its own."""
    denoiser, encoder = base.denoiser, base.text.encoders[0]
    unet = UNetDenoiser(copy.deepcopy(denoiser.unet), denoiser.sigmas, denoiser.prediction)
    return replace(base, denoiser=unet, text=TextPath([replace(encoder, model=copy.deepcopy(encoder.model))]))


def token_ids(model: EmbeddedModel, texts: Sequence[str]) -> Tensor:
    """Framed token ids (B, L) of texts of one chunk."""
    tokenizer = model.text.encoders[0].tokenizer
    return torch.tensor([tokenizer.frame(tokenizer.split(t)[0]) for t in texts], device=model.denoiser.device)


def last_token(model: EmbeddedModel, word: str) -> int:
    """The token id a word ends in; most words are one token."""
    ids, _ = model.text.encoders[0].tokenizer.split(word)
    return ids[-1]


def text_states(model: EmbeddedModel, texts: Sequence[str]) -> Tensor:
    """Text-encoder states (B, L, D) that gradients flow through."""
    states: Tensor = model.text.encoders[0].model(token_ids(model, texts)).last_hidden_state
    return states


def _told(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a network's or scheduler's file says, without what diffusers notes of its own version and folder."""
    return sorted((key, value) for key, value in config.items() if not key.startswith("_"))


@dataclass(frozen=True)
class Studio:
    """The base model and a folder for what is made of it once.

    Attributes:
        base: the model; its one text encoder reads the subjects' rare words.
        folder: cache.
        captions: that the covariance of text is taken over.
        class_pictures: class pictures per word, for prior preservation; the papers have 200.
    """

    base: EmbeddedModel
    folder: Path
    captions: tuple[str, ...]
    class_pictures: int = 200

    @cached_property
    def base_identity(self) -> str:
        """What the base model is: its weights, its words, and what its files say of how it is used."""
        base, encoders = self.base, self.base.text.encoders
        networks = (base.denoiser.unet, base.vae, *(encoder.model for encoder in encoders))
        configs = [_told(part.config) for part in (base.denoiser.unet, base.vae, base.scheduler)]
        texts = [(sorted(e.tokenizer.vocabulary.items()), e.tokenizer.frame([]), e.penultimate) for e in encoders]
        wishes = (base.resolution, base.steps, base.guidance, base.temperature, base.augmentation)
        return digest(digest_of_networks(networks), configs, texts, wishes)

    @cached_property
    def identity(self) -> str:
        """What training depends on beside the method and its subjects."""
        return digest(self.base_identity, self.captions, self.class_pictures)

    def class_latents(self, word: str) -> Tensor:
        """Encoded pictures (class_pictures, C, h, w) that the base model draws for the class word, as in DreamBooth."""
        path = self.folder / f"class-{word}-{self.class_pictures}-{self.base_identity}.safetensors"
        if not path.exists():
            settings = SampleSettings(self.base.steps, self.base.guidance)
            pictures = draw(self.base, CAPTION_TEMPLATES[0].format(word), (), self.class_pictures, CLASS_SEED, settings)
            write_atomic(path, safetensors.torch.save({"latents": self.base.encode(pictures)}))
        latents: Tensor = safetensors.torch.load_file(path)["latents"]
        return latents.to(self.base.denoiser.device)

    @cached_property
    def text_covariance(self) -> Tensor:
        """Uncentred covariance (D, D) of text states over the tokens of captions, Perfusion's C."""
        texts = self.captions
        ids = token_ids(self.base, texts)
        with torch.no_grad():
            states = torch.cat([text_states(self.base, texts[i : i + 100]) for i in range(0, len(texts), 100)])
        # A token of the text has another one behind it: neither the start, nor the end, nor padding.
        ends = (ids == ids[:, -1:]).int().argmax(1)  # (B,) the first of the tokens that end and pad
        places = torch.arange(ids.shape[1], device=ids.device)
        used = states[(places > 0) & (places < ends[:, None])].double()  # (tokens, D)
        return (used.T @ used / len(used)).float()
