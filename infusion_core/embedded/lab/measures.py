"""What the lab measures of a customised model."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from ...metrics.fisher import DenoiserPredictor, Divergence, fisher_divergence
from ..model import EmbeddedModel
from ..tinyworld import render
from ..tinyworld.captions import caption, random_aspects, random_scene
from ..tinyworld.concepts import HELD_OUT_LOOKS
from ..tinyworld.world import Scene
from .method import Customised


def other_scenes(words: Sequence[str], count: int) -> list[Scene]:
    """Random scenes with none of the class words' shapes."""
    rng, found = Random("other concepts"), list[Scene]()
    while len(found) < count:
        scene = random_scene(rng, HELD_OUT_LOOKS)
        if not any(t.shape in words for t in scene.things):
            found.append(scene)
    return found


def predictor(customised: Customised, prompts: Sequence[str]) -> DenoiserPredictor:
    """A customised model's noise predictions under prompts."""
    words = {name: residual.word for name, (residual, _) in customised.concepts.items()}
    encoded = [customised.model.text.encode(p, words) for p in prompts]
    return DenoiserPredictor(customised.model.denoiser, encoded, tuple(customised.concepts.values()))


def fisher(base: EmbeddedModel, customised: Customised, words: Sequence[str], prompts: int, draws: int) -> Divergence:
    """Latent Fisher divergence from the base model on pictures and captions of other things (eq. 4).

    Args:
        base: TinyWorld.
        customised: what is compared.
        words: class words of its concepts; no prompt holds one.
        prompts: captions of random scenes, each with its own picture.
        draws: of picture, noise level and noise.
    """
    scenes, rng = other_scenes(words, prompts), Random("what is told")
    latents = base.encode([render(s) for s in scenes])
    texts = [caption(s, random_aspects(rng)) for s in scenes]
    plain = predictor(Customised(base, ()), texts)
    return fisher_divergence(plain, predictor(customised, texts), latents, prompts, base.denoiser.sigmas, draws)


def spread(pictures: Tensor) -> float:
    """Mean distance of all pairs of pictures (N, 3, H, W): mean absolute colour difference, 0 to 1."""
    rows = pictures.flatten(1)
    distances = torch.cdist(rows, rows, p=1) / rows.shape[1]
    count = len(rows)
    return (distances.sum() / (count * (count - 1))).item()
