"""TinyWorld's text encoder: it learns to read before any picture is shown, as CLIP has before Stable Diffusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import Random

import torch
from torch import Generator, Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from infusion_core.embedded.text import WordTokenizer
from infusion_core.embedded.tinyworld import words
from infusion_core.embedded.tinyworld.captions import OPENINGS, caption, random_aspects
from infusion_core.embedded.tinyworld.world import (
    BACKGROUNDS,
    BODIES,
    COLOURS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)
from infusion_core.noise import seeded
from infusion_core.training.objective import ParameterGroup

WIDTH = 160  # of the text context
BATCH = 32
PROBE_RATE = 3.0  # the probes' learning rate over the network's
TOKENIZER = WordTokenizer(words.tokenizer_file()["words"], words.START, words.END, words.LENGTH)
# What is asked of a thing, and how many answers there are, one of them "it is not told".
QUESTIONS = {"size": SIZES, "position": POSITIONS, "body": BODIES, "first": COLOURS, "second": COLOURS, "dot": COLOURS}


def build_text_encoder() -> CLIPTextModel:
    """The untrained text encoder: CLIP's causal one in small."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words.VOCABULARY_SIZE,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=words.LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=words.START,
            eos_token_id=words.END,
            pad_token_id=words.END,
        )
    )


class TextEncoderObjective:
    """What a caption says, its states must tell: a noun's state its thing, every state after the end the whole scene.

    A linear probe reads them. CLIP's text encoder has learned the like from pictures; one that learns together with the
    UNet is not rewarded before the UNet listens, nor the UNet before there is something to hear.

    Args:
        scenes: that captions are about.
        device: that trains.
    """

    def __init__(self, scenes: Sequence[Scene], device: torch.device) -> None:
        self._scenes = scenes
        self.text_encoder = build_text_encoder().to(device).train()
        one = [len(answers) + 1 for answers in QUESTIONS.values()]
        self._noun_sizes = [len(SHAPES), *one]
        self._whole_sizes = [2, *one] * len(SHAPES) + [len(BACKGROUNDS) + 1, len(PATTERNS) + 1]
        self._noun_probe = nn.Linear(WIDTH, sum(self._noun_sizes)).to(device)
        self._whole_probe = nn.Linear(WIDTH, sum(self._whole_sizes)).to(device)

    def groups(self) -> list[ParameterGroup]:
        """The network and the probes."""
        probes = {
            **dict(self._noun_probe.named_parameters(prefix="noun")),
            **dict(self._whole_probe.named_parameters(prefix="whole")),
        }
        return [ParameterGroup(dict(self.text_encoder.named_parameters())), ParameterGroup(probes, PROBE_RATE)]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """Cross entropy a question: ``nouns``, one per noun; ``whole`` (B,)."""
        picks = torch.randint(len(self._scenes), (BATCH,), generator=generator).tolist()
        rng = Random(int(torch.randint(2**62, (), generator=generator)))
        texts, noun_rows, noun_answers, whole_answers = [], [], [], []
        for row, scene in enumerate(self._scenes[i] for i in picks):
            say = random_aspects(rng)
            texts.append(caption(scene, say, rng.choice(OPENINGS)))
            for thing in scene.things:
                noun_rows.append((row, noun(texts[-1], thing.shape)))
                noun_answers.append([SHAPES.index(thing.shape), *_answers(thing, say - {"position"})])
            whole_answers.append(answers_about(scene, say))
        states = read(self.text_encoder, texts)
        rows, positions = torch.tensor(noun_rows, device=states.device).T
        after = torch.tensor([rng.randrange(len(text.split()) + 1, words.LENGTH) for text in texts])
        whole = states[torch.arange(len(texts)), after]
        return {
            "nouns": _entropies(self._noun_probe(states[rows, positions]), noun_answers, self._noun_sizes),
            "whole": _entropies(self._whole_probe(whole), whole_answers, self._whole_sizes),
        }

    @torch.no_grad()
    def validation(self, draws: int, seed: int) -> Tensor:
        """Cross entropies of whole scenes (at least `draws`) that are the same at every call."""
        generator = seeded(seed)
        return torch.cat([self.losses(generator)["whole"] for _ in range(-(-draws // BATCH))])

    def after_step(self) -> None:
        """Nothing follows a step."""

    def learned(self) -> CLIPTextModel:
        """The text encoder itself."""
        return self.text_encoder

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing beside the weights."""
        return {}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


def read(text_encoder: CLIPTextModel, texts: Sequence[str]) -> Tensor:
    """States of texts, (B, 77, D)."""
    ids = torch.tensor([TOKENIZER.frame(TOKENIZER.split(text)[0]) for text in texts])
    states: Tensor = text_encoder(ids.to(text_encoder.device)).last_hidden_state
    return states


def noun(text: str, shape: str) -> int:
    """Position of a noun in the framed text; every word is one token."""
    return text.split().index(shape) + 1


@torch.no_grad()
def lengthen_rare_words(text_encoder: CLIPTextModel) -> None:
    """Make embeddings that no caption ever read as long as those of words are on average.

    Training makes words three times as long as they began; a rare word of a real model is as long as any other.
    """
    embeddings = text_encoder.get_input_embeddings().weight
    known = torch.tensor(sorted(TOKENIZER.ids.values()), device=embeddings.device)
    rare = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    rare[[words.START, words.END, *known.tolist()]] = False
    lengths = embeddings.norm(dim=1, keepdim=True)
    embeddings[rare] *= lengths[known].mean() / lengths[rare]


def _answers(thing: Thing, say: Collection[str]) -> list[int]:
    """The answers about a thing to QUESTIONS, in order; 0 is "it is not told"."""
    told = {aspect: getattr(thing, aspect) for aspect in ("size", "position") if aspect in say}
    if thing.look and "look" in say:
        told |= {part: getattr(thing.look, part) for part in ("body", "first", "second", "dot")}
    return [_number(told.get(question), answers) for question, answers in QUESTIONS.items()]


def answers_about(scene: Scene, say: Collection[str]) -> list[int]:
    """The answers about a whole scene: of each shape whether it is there and those of the thing, then the ground's."""
    things = {thing.shape: [1, *_answers(thing, say)] for thing in scene.things}
    ground = scene.background if "background" in say else None
    pattern = scene.pattern if {"background", "pattern"} <= set(say) else None
    missing = [0] * (len(QUESTIONS) + 1)
    of_things = [number for shape in SHAPES for number in things.get(shape, missing)]
    return [*of_things, _number(ground, BACKGROUNDS), _number(pattern, PATTERNS)]


def _number(told: str | None, answers: Collection[str]) -> int:
    return 0 if told is None else tuple(answers).index(told) + 1


def _entropies(said: Tensor, answers: Sequence[Sequence[int]], sizes: Sequence[int]) -> Tensor:
    """Mean cross entropy a question, (K,)."""
    wanted = torch.tensor(answers, device=said.device).T
    each = zip(said.float().split(list(sizes), dim=1), wanted, strict=True)
    return torch.stack([nn.functional.cross_entropy(s, w, reduction="none") for s, w in each]).mean(0)
