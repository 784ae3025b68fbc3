"""The two things a user does: train a concept on photos, and draw pictures with concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..captions import CAPTION_TEMPLATES, class_word, fill, said_of
from ..concepts import LoadedConcept, words_of
from ..denoiser import EncodedPrompt
from ..residuals import ConceptResidual
from ..tokens import bind_prompt
from ..training.engine import Trainer
from ..training.residual import ResidualObjective, ResidualSettings
from ..training.shapes import Size, on_shapes
from ..training.shown import Said
from ..training.state import TrainState
from .model import EmbeddedModel, sized
from .sampling import Picture, Sampler, SampleSettings, SampleStep
from .subject import SubjectPhotos
from .variants import encoded, sizes_of


def trainer_for(
    model: EmbeddedModel,
    photos: Sequence[Image.Image] | SubjectPhotos,
    word: str,
    settings: ResidualSettings,
    templates: Sequence[str] = CAPTION_TEMPLATES,
    start: ConceptResidual | None = None,
    state: TrainState | None = None,
    aspect: bool = False,
) -> Trainer[ConceptResidual]:
    """A trainer for one concept on photos.

    Args:
        model: the base model.
        photos: of the subject, with captions and masks where there are any.
        word: its class word.
        settings: how to train.
        templates: caption templates with ``{}`` for the word, for photos without captions of their own.
        start: a concept to continue from.
        state: of an interrupted run with the same inputs.
        aspect: photos keep their shape, and a batch is of one size, see `ShapedObjective`; else their middle squares.

    Raises:
        InfusionError: no photos, a bad word, a bad template or caption, an empty mask, or `start` does not fit.
    """
    given = SubjectPhotos.of(photos)
    word = class_word(word)
    model.text.word_tokens(word)
    captions, said = said_of(given.captions, given.names, fill(tuple(templates), word), word)
    prompts = model.text.encode_alike(captions, {"concept": word})
    settings = replace(settings, restraint=settings.restraint.on(model.temperature, model.augmentation))

    def seen(
        size: Size | None, numbers: Sequence[int]
    ) -> tuple[Tensor, list[EncodedPrompt], Tensor | None, Said | None]:
        photos = given.some(numbers)
        latents, masks = encoded(model, photos, settings.restraint, settings.seed, size)
        read = [replace(prompt, conditioning=sized(prompt.conditioning, size)) for prompt in prompts]
        return latents, read, masks, said and [said[number] for number in numbers]

    groups = sizes_of(model, given, aspect)
    one, *others = groups.items()
    latents, read, masks, own = seen(*one)
    first = ResidualObjective(model.denoiser, latents, read, word, settings, start, masks, own)
    members = [first, *(first.on(*seen(*other)) for other in others)]
    return Trainer(on_shapes(members, list(map(len, groups.values()))), settings, state)


def draw(
    model: EmbeddedModel,
    prompt: str,
    concepts: Sequence[LoadedConcept],
    count: int,
    seed: int,
    settings: SampleSettings,
    negative: str = "",
    batch: int = 8,
    on_step: Callable[[SampleStep], None] | None = None,
) -> list[Image.Image]:
    """Draw pictures of a prompt.

    Args:
        model: the base model.
        prompt: names concepts by their word or as ``<name>``.
        concepts: what is loaded; a concept whose word the prompt does not hold changes nothing.
        count: pictures; picture i is drawn from noise of `seed` + i.
        seed: of the first picture.
        settings: how to sample.
        negative: prompt of the unconditional half.
        batch: pictures per pass.
        on_step: called after each sampling step of each batch.

    Raises:
        InfusionError: the prompt cannot be bound, or a concept was made for another base.
    """
    drawn = draw_latents(model, prompt, concepts, count, seed, settings, negative, batch, on_step)
    return [picture for latents in drawn for picture in model.decode(latents)]


def draw_latents(
    model: EmbeddedModel,
    prompt: str,
    concepts: Sequence[LoadedConcept],
    count: int,
    seed: int,
    settings: SampleSettings,
    negative: str = "",
    batch: int = 8,
    on_step: Callable[[SampleStep], None] | None = None,
) -> Iterator[Tensor]:
    """Latents (n, C, h, w) of each batch of pictures of a prompt; see `draw`."""
    sampler = sampler_for(model, prompt, concepts, settings, negative)
    for first in range(0, count, batch):
        yield _last(sampler, model.noise(min(batch, count - first), seed + first), on_step)


def _last(sampler: Sampler, noise: Tensor, on_step: Callable[[SampleStep], None] | None) -> Tensor:
    """The latents at the end of a run."""
    latents = noise
    for step in sampler.run(noise):
        latents = step.latents
        if on_step:
            on_step(step)
    return latents


def sampler_for(
    model: EmbeddedModel, prompt: str, concepts: Sequence[LoadedConcept], settings: SampleSettings, negative: str = ""
) -> Sampler:
    """A sampler of a prompt.

    Raises:
        InfusionError: see `draw`.
    """
    return Sampler(model.denoiser, model.scheduler, [picture_of(model, prompt, concepts, negative)], settings)


@dataclass(frozen=True)
class Wish:
    """A picture that somebody wants.

    Attributes:
        picture: what it is drawn from, see `picture_of`.
        seed: of its noise.
    """

    picture: Picture
    seed: int = 0


def draw_each(
    model: EmbeddedModel,
    wishes: Sequence[Wish],
    settings: SampleSettings,
    batch: int = 8,
    on_step: Callable[[SampleStep], None] | None = None,
) -> list[Image.Image]:
    """Draw a picture of each wish: prompts, concepts and seeds may differ from one to the next.

    Each is what `draw` gives of it, up to rounding: pictures that share a pass do not know of each other.

    Args:
        model: the base model.
        wishes: in any number.
        settings: how to sample.
        batch: pictures per pass.
        on_step: called after each sampling step of each batch.

    Raises:
        InfusionError: more steps than the model has noise levels.
    """
    pictures: list[Image.Image] = []
    for first in range(0, len(wishes), batch):
        some = wishes[first : first + batch]
        sampler = Sampler(model.denoiser, model.scheduler, [wish.picture for wish in some], settings)
        noise = torch.cat([model.noise(1, wish.seed) for wish in some])
        pictures += model.decode(_last(sampler, noise, on_step))
    return pictures


def picture_of(
    model: EmbeddedModel, prompt: str, concepts: Sequence[LoadedConcept] = (), negative: str = ""
) -> Picture:
    """What a picture is drawn from; both halves are encoded to one length.

    Args:
        model: the base model.
        prompt: names concepts by their word or as ``<name>``.
        concepts: what is loaded.
        negative: prompt of the unconditional half.

    Raises:
        InfusionError: the prompt cannot be bound, or a concept was made for another base.
    """
    for concept in concepts:
        concept.residual.check_fits(model.denoiser.base)
    words = words_of(concepts)
    encoded = model.text.encode(prompt, words)
    chunks = model.text.chunks_of(encoded)
    uncond = model.text.encode(negative, chunks=chunks)
    longer = model.text.chunks_of(uncond)
    if longer > chunks:
        encoded = model.text.encode(prompt, words, chunks=longer)
    return Picture(encoded, uncond.conditioning, concepts)


def unmentioned(prompt: str, concepts: Sequence[LoadedConcept]) -> list[LoadedConcept]:
    """The concepts whose word or ``<name>`` a prompt does not hold, so that they change nothing.

    Raises:
        InfusionError: the prompt cannot be bound.
    """
    bound = bind_prompt(prompt, words_of(concepts))
    return [concept for index, concept in enumerate(concepts) if not bound.mentions(index)]
