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

from ...atomic import write_atomic
from ...captions import CAPTION_TEMPLATES
from ..model import EmbeddedModel
from ..sampling import SampleSettings
from ..tasks import draw
from ..text import Encoder, TextPath, WordTokenizer
from ..tinyworld import words
from ..tinyworld.captions import caption, random_aspects, random_scene
from ..tinyworld.concepts import HELD_OUT_LOOKS
from ..unet import UNetDenoiser

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
    """A copy of TinyWorld with a UNet and a text encoder of its own, and spare words."""
    denoiser = base.denoiser
    unet = UNetDenoiser(copy.deepcopy(denoiser.unet), denoiser.sigmas, denoiser.prediction)
    encoder = Encoder(MarkedTokenizer(), copy.deepcopy(base.text.encoders[0].model))
    return replace(base, denoiser=unet, text=TextPath([encoder]))


def token_ids(model: EmbeddedModel, texts: Sequence[str]) -> Tensor:
    """Framed token ids (B, L) of texts of one chunk."""
    tokenizer = model.text.encoders[0].tokenizer
    return torch.tensor([tokenizer.frame(tokenizer.split(t)[0]) for t in texts], device=model.denoiser.device)


def text_states(model: EmbeddedModel, texts: Sequence[str]) -> Tensor:
    """Text-encoder states (B, L, D) that gradients flow through."""
    states: Tensor = model.text.encoders[0].model(token_ids(model, texts)).last_hidden_state
    return states


@dataclass(frozen=True)
class Studio:
    """The base model and a folder for what is made of it once.

    Attributes:
        base: TinyWorld.
        folder: cache.
        class_pictures: class pictures per word, for prior preservation; the papers have 200.
    """

    base: EmbeddedModel
    folder: Path
    class_pictures: int = 200

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
        """Uncentred covariance (D, D) of text states over the tokens of random captions, Perfusion's C."""
        rng = Random("text covariance")
        texts = [caption(random_scene(rng, HELD_OUT_LOOKS), random_aspects(rng)) for _ in range(CAPTION_COUNT)]
        ids = token_ids(self.base, texts)
        with torch.no_grad():
            states = torch.cat([text_states(self.base, texts[i : i + 100]) for i in range(0, len(texts), 100)])
        used = states[(ids != words.START) & (ids != words.END)].double()  # (tokens, D)
        return (used.T @ used / len(used)).float()
