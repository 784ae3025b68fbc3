"""Methods that learn a word: Textual Inversion (arXiv 2208.01618) and Custom Diffusion (arXiv 2212.04488)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.model import EmbeddedModel

from ..studio import Studio, customisable, last_token
from .dreambooth import marked_class
from .fitting import batches, fit
from .method import Baseline, Customised, Learned, Snapshot, Subject, full


def embedding_of(model: EmbeddedModel, word: str) -> Tensor:
    """The embedding (D,) of one word (of its last token), a copy."""
    table = model.text.encoders[0].model.get_input_embeddings().weight
    row: Tensor = table[last_token(model, word)].detach().clone()
    return row


def learn_words(model: EmbeddedModel, vectors: Mapping[str, Tensor]) -> None:
    """Make the text encoder read spare words as `vectors`, by mark; gradients flow into them."""
    by_token = {last_token(model, mark): vector for mark, vector in vectors.items()}

    def replace_rows(_: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        for token, vector in by_token.items():
            out = torch.where((args[0] == token)[..., None], vector, out)
        return out

    model.text.encoders[0].model.get_input_embeddings().register_forward_hook(replace_rows)


@dataclass(frozen=True)
class TextualInversion(Baseline):
    """A new word's embedding alone, from the class word's."""

    key: ClassVar = "textual-inversion"
    title: ClassVar = "Textual Inversion"
    joint: ClassVar = False

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        model = customisable(studio.base)
        vectors = {s.mark: embedding_of(model, s.word).requires_grad_() for s in subjects}
        learn_words(model, vectors)
        groups = [{"params": list(vectors.values()), "lr": self.recipe.learning_rate}]
        draw = batches(studio, model, subjects, [s.mark for s in subjects], self.recipe, CAPTION_TEMPLATES)
        return fit(model, groups, draw, subjects, lambda: dict(vectors), marks, seed)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        model = customisable(studio.base)
        learn_words(model, {mark: v for one in learned for mark, v in full(one, studio.base.denoiser.device).items()})
        return Customised(model, tuple(s.mark for one in learned for s in one.subjects))


@dataclass(frozen=True)
class CustomDiffusion(Baseline):
    """Key and value projections of cross-attention and a rare word before the class word, with class pictures."""

    key: ClassVar = "custom-diffusion"
    title: ClassVar = "Custom Diffusion"
    joint: ClassVar = True

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        model = customisable(studio.base)
        vectors = {s.mark: embedding_of(model, s.mark).requires_grad_() for s in subjects}
        learn_words(model, vectors)
        projections = _keys_and_values(model)
        for weight in projections.values():
            weight.requires_grad_()
        groups = [{"params": [*projections.values(), *vectors.values()], "lr": self.recipe.learning_rate}]
        draw = batches(studio, model, subjects, marked_class(subjects), self.recipe)
        return fit(model, groups, draw, subjects, lambda: {**projections, **vectors}, marks, seed)

    @torch.no_grad()
    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        (one,) = learned
        model = customisable(studio.base)
        tensors = full(one, studio.base.denoiser.device)
        for name, weight in _keys_and_values(model).items():
            weight.copy_(tensors[name])
        learn_words(model, {s.mark: tensors[s.mark] for s in one.subjects})
        return Customised(model, marked_class(one.subjects))


def _keys_and_values(model: EmbeddedModel) -> dict[str, Tensor]:
    """Weights of every cross-attention layer's key and value projection."""
    endings = ("attn2.to_k.weight", "attn2.to_v.weight")
    return {name: p for name, p in model.denoiser.unet.named_parameters() if name.endswith(endings)}
