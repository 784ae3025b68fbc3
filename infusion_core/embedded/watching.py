"""Drawing while attention is watched: where words of the prompt attend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ..attention import Plan
from ..readers import WordMaps, WordReader
from .model import EmbeddedModel
from .sampling import SampleSettings
from .tasks import sampler_for


@torch.no_grad()
def draw_watched(
    model: EmbeddedModel, prompt: str, words: Sequence[str], count: int, seed: int, settings: SampleSettings
) -> tuple[list[Image.Image], WordMaps]:
    """Pictures of a prompt, and the maps of some of its words over the whole run, conditional half.

    Args:
        model: draws; concepts are not at work.
        prompt: holds the words.
        words: that are watched.
        count: pictures, all in one batch.
        seed: of the first picture.
        settings: how to sample.

    Raises:
        InfusionError: the prompt cannot be bound.
    """
    spans = model.text.encode(prompt, {word: word for word in words}).spans
    positions = {
        word: sorted({position for span in found for position in span})
        for word, found in zip(words, spans, strict=True)
        if found
    }
    maps, sampler = WordMaps(tuple(words)), sampler_for(model, prompt, (), settings)
    plan = Plan(readers=[WordReader(slice(-count, None), positions, maps)])
    x = model.noise(count, seed) * sampler.scheduler.init_noise_sigma
    for moment in sampler.moments(count):
        x = sampler.advance(sampler.predict(sampler.rows(x, moment), moment, plan), moment, x)
    return model.decode(x), maps
