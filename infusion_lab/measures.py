"""What the lab measures of a customised model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from statistics import median

import numpy as np
from PIL import Image
from torch import Tensor

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.concepts import words_of
from infusion_core.embedded.evaluate import ERRORS, Scored, evaluate
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tinyworld import HELD_OUT_LOOKS, Concept, render
from infusion_core.embedded.tinyworld.captions import caption, random_aspects, random_scene, unseen_scenes
from infusion_core.embedded.tinyworld.reading import obeyed
from infusion_core.embedded.tinyworld.world import Scene
from infusion_core.metrics.fisher import DenoiserPredictor, Divergence, fisher_divergence
from infusion_core.metrics.similarity import diversity

from .methods.method import Customised
from .store import Row

# Of every picture, see `Score`. The headline joins the two sides of the trade: is it the thing, is the prompt obeyed?
CONCEPT, PROMPT, HEADLINE = "concept_error", "prompt_error", "picture_error"
CLASS_WORD, LOOK_IN_WORDS = "base: class word", "base: look in words"  # the yardsticks, in place of a method
BARE_SEED = 70_000  # of the first picture of a bare prompt


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
    encoded = [customised.model.text.encode(p, words_of(customised.concepts)) for p in prompts]
    return DenoiserPredictor(customised.model.denoiser, encoded, customised.concepts)


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


def drawn_and_scored(
    customised: Customised, concept: Concept, prompts: int, seeds: Sequence[int], settings: SampleSettings
) -> list[Scored]:
    """Unseen prompts drawn and scored by the oracle; the prompts say the method's phrase for the concept."""
    draw = partial(customised.draw, settings=settings)
    return evaluate(draw, concept, unseen_scenes(concept, prompts), seeds, phrase=customised.phrases[0])


def yardstick(
    base: EmbeddedModel, name: str, concept: Concept, prompts: int, seeds: Sequence[int], settings: SampleSettings
) -> list[Scored]:
    """The same prompts with the base model: the bare class word, or the look in words."""
    draw = partial(Customised(base, ()).draw, settings=settings)
    return evaluate(draw, concept, unseen_scenes(concept, prompts), seeds, describe=name == LOOK_IN_WORDS)


def error_rows(study: str, method: str, concept: Concept, step: int, scored: Sequence[Scored]) -> list[Row]:
    """Every error of every picture."""
    return [
        Row(study, method, concept.name, step, s.prompt, s.seed, error, getattr(s.score, error))
        for s in scored
        for error in ERRORS
    ]


def bare_pictures(
    customised: Customised, word: str, count: int, settings: SampleSettings, seed: int = BARE_SEED
) -> list[Image.Image]:
    """Pictures of "a photo of a `word`", which leaves everything else open."""
    prompt = CAPTION_TEMPLATES[0].format(word)
    return customised.draw(prompt, count, seed, settings)


def openness(pictures: Sequence[Image.Image], latents: Tensor, concept: Concept) -> dict[str, float]:
    """How much a bare prompt still leaves open.

    ``diversity``: mean ``1 - cosine`` of all pairs of latents. ``layout_repeated``: mean of the share of pictures with
    the training photos' background colour and the share with their position.
    """
    trained = concept.training_scene(0)
    seen = [obeyed(picture, trained) for picture in pictures]
    repeated = float(np.mean([[s["background"], s["position"]] for s in seen]))
    return {"diversity": diversity(latents.flatten(1)), "layout_repeated": repeated}


def sampling_cost(base: EmbeddedModel, customised: Customised, word: str, settings: SampleSettings) -> float:
    """Seconds of one picture over those of the base model's picture of `word`: medians of three, taken in turns."""
    phrase = customised.phrases[0]

    def seconds(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    ours, plain = [], []
    for seed in range(3):
        ours.append(seconds(partial(bare_pictures, customised, phrase, 1, settings, seed)))
        plain.append(seconds(partial(bare_pictures, Customised(base, ()), word, 1, settings, seed)))
    return median(ours) / median(plain)
