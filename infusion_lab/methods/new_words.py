"""Methods that teach a new word: Textual Inversion (arXiv 2208.01618) and Custom Diffusion (arXiv 2212.04488)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.training.objective import ParameterGroup

from ..studio import Studio, customisable, last_token
from .baseline import Baseline, BaselineObjective
from .method import Customised, Learned, Subject
from .parts import parameters_of


def embedding_of(model: EmbeddedModel, word: str) -> Tensor:
    """The embedding (D,) of one word (of its last token), a copy."""
    table = model.text.encoders[0].model.get_input_embeddings().weight
    row: Tensor = table[last_token(model, word)].detach().clone()
    return row


def learn_words(model: EmbeddedModel, vectors: Mapping[str, Tensor]) -> None:
    """Make the text encoder read rare words as `vectors`, by word; gradients flow into them."""
    by_token = {last_token(model, word): vector for word, vector in vectors.items()}

    def replace_rows(_: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        for token, vector in by_token.items():
            out = torch.where((args[0] == token)[..., None], vector, out)
        return out

    model.text.encoders[0].model.get_input_embeddings().register_forward_hook(replace_rows)


@dataclass(frozen=True)
class TextualInversion(Baseline):
    """A new word's embedding alone, from the class word's."""

    family: ClassVar = "textual-inversion"
    name: ClassVar = "Textual Inversion"
    joint: ClassVar = False

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        vectors = {s.rare_word: embedding_of(model, s.word).requires_grad_() for s in subjects}
        learn_words(model, vectors)
        shown = self.materials(studio, model, subjects, list(vectors))
        return BaselineObjective(model, shown, self.recipe, [ParameterGroup(vectors)], lambda: vectors)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        model = customisable(studio.base)
        learn_words(model, {word: v for one in learned for word, v in one.full(studio.base.denoiser.device).items()})
        return Customised(model, tuple(s.rare_word for one in learned for s in one.subjects))


@dataclass(frozen=True)
class CustomDiffusion(Baseline):
    """Projections of cross-attention and a rare word before the class word, with class pictures."""

    family: ClassVar = "custom-diffusion"
    name: ClassVar = "Custom Diffusion"
    joint: ClassVar = True

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        vectors = {s.rare_word: embedding_of(model, s.rare_word).requires_grad_() for s in subjects}
        learn_words(model, vectors)
        projections = {name: p.requires_grad_() for name, p in parameters_of(model, self.recipe.part).items()}
        learned = {**projections, **vectors}
        shown = self.materials(studio, model, subjects, self.phrases(subjects))
        return BaselineObjective(model, shown, self.recipe, [ParameterGroup(learned)], lambda: learned)

    @torch.no_grad()
    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        tensors = one.full(studio.base.denoiser.device)
        for name, weight in parameters_of(model, self.recipe.part).items():
            weight.copy_(tensors[name])
        learn_words(model, {s.rare_word: tensors[s.rare_word] for s in one.subjects})
        return Customised(model, self.phrases(one.subjects))
