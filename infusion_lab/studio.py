"""The base model with what baselines need of it: own copies, spare words, class pictures, the covariance of text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

import safetensors.torch
import torch
from torch import Tensor

from infusion_core.atomic import write_atomic
from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.embedded.text import Encoder, TextPath, WordTokenizer
from infusion_core.embedded.tinyworld import words
from infusion_core.embedded.tinyworld.captions import caption, random_aspects, random_scene
from infusion_core.embedded.tinyworld.concepts import HELD_OUT_LOOKS
from infusion_core.embedded.unet import UNetDenoiser

# Rows of the text encoder's vocabulary that no word of TinyWorld has: the rare tokens of the baselines' papers.
MARKS = {f"v{i}": token for i, token in enumerate(range(len(words.WORDS) + 2, words.VOCABULARY_SIZE), start=1)}
CAPTION_COUNT = 1000  # captions the covariance of text states is taken over
CLASS_SEED = 500_000  # of the first class picture; no study draws from these


class MarkedTokenizer(WordTokenizer):
    """TinyWorld's word list with the spare words ``v1``, ``v2``, ..."""

    def split(self, text: str) -> tuple[list[int], list[bool]]:
        """See `Tokenizer.split`."""
        ids: list[int] = []
        for word in text.split():
            ids += [MARKS[word]] if word in MARKS else super().split(word)[0]
        return ids, [True] * len(ids)


def customisable(base: EmbeddedModel) -> EmbeddedModel:
    """A copy of a model with a UNet and a text encoder of its own; TinyWorld's gets spare words."""
    denoiser, plain = base.denoiser, base.text.encoders[0]
    unet = UNetDenoiser(copy.deepcopy(denoiser.unet), denoiser.sigmas, denoiser.prediction)
    tokenizer = MarkedTokenizer() if isinstance(plain.tokenizer, WordTokenizer) else plain.tokenizer
    encoder = Encoder(tokenizer, copy.deepcopy(plain.model))
    return replace(base, denoiser=unet, text=TextPath([encoder]))


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


@dataclass(frozen=True)
class Studio:
    """The base model and a folder for what is made of it once.

    Attributes:
        base: the model.
        folder: cache.
        class_pictures: class pictures per word, for prior preservation; the papers have 200.
        captions: that the covariance of text is taken over; random captions of TinyWorld by default.
    """

    base: EmbeddedModel
    folder: Path
    class_pictures: int = 200
    captions: tuple[str, ...] = ()

    def class_latents(self, word: str) -> Tensor:
        """Encoded pictures (class_pictures, C, h, w) that the base model draws for the class word, as in DreamBooth."""
        path = self.folder / f"class-{word}-{self.class_pictures}.safetensors"
        if not path.exists():
            settings = SampleSettings(self.base.steps, self.base.guidance)
            pictures = draw(self.base, CAPTION_TEMPLATES[0].format(word), {}, self.class_pictures, CLASS_SEED, settings)
            write_atomic(path, safetensors.torch.save({"latents": self.base.encode(pictures)}))
        latents: Tensor = safetensors.torch.load_file(path)["latents"]
        return latents.to(self.base.denoiser.device)

    @cached_property
    def text_covariance(self) -> Tensor:
        """Uncentred covariance (D, D) of text states over the tokens of captions, Perfusion's C."""
        texts = self.captions or _tinyworld_captions()
        ids = token_ids(self.base, texts)
        with torch.no_grad():
            states = torch.cat([text_states(self.base, texts[i : i + 100]) for i in range(0, len(texts), 100)])
        # A token of the text has another one behind it: neither the start, nor the end, nor padding.
        ends = (ids == ids[:, -1:]).int().argmax(1)  # (B,) the first of the tokens that end and pad
        places = torch.arange(ids.shape[1], device=ids.device)
        used = states[(places > 0) & (places < ends[:, None])].double()  # (tokens, D)
        return (used.T @ used / len(used)).float()


def _tinyworld_captions() -> tuple[str, ...]:
    rng = Random("text covariance")
    scenes = [random_scene(rng, HELD_OUT_LOOKS) for _ in range(CAPTION_COUNT)]
    return tuple(caption(scene, random_aspects(rng)) for scene in scenes)
