"""Direct Consistency Optimization (arXiv 2402.12004), as its authors' script trains it (kyungmnlee/dco).

A LoRA and the embedding of a new word, by a loss that wants the photos to be likelier than under the base model, but
no further from it than that takes:

    -log sigmoid(-beta (|eps_theta(x_t, c) - eps|^2 - |eps_base(x_t, c') - eps|^2)),

where c says the new word and c' the class word it starts from. The word's embedding keeps its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from infusion_core.training.objective import ParameterGroup

from ..studio import Studio, customisable
from .baseline import Baseline, BaselineObjective
from .dreambooth import with_adapter
from .method import Customised, Learned, Subject
from .new_words import embedding_of, learn_words

WORD_RATE = 0.1  # learning rate of the words over that of the adapter: the script's 5e-6 and 5e-5


@dataclass
class DcoObjective(BaselineObjective):
    """Consistency with the base model.

    Attributes:
        words: embeddings (D,) of the new words, by word.
        lengths: that they keep.
    """

    words: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor]

    def losses(self, generator: Generator) -> dict[str, Tensor]:
        """The loss of each photo; noise levels are weighed inside, where the paper has its T w(t)."""
        batch = self._batch(self._sample(self.recipe.batch_size, generator), generator)
        errors, unet = self._errors(batch), self.model.denoiser.unet
        unet.disable_adapters()
        with torch.no_grad():
            reference = self._errors(batch, plain=True)
        unet.enable_adapters()
        return {"consistency": -logsigmoid(-self.recipe.beta * batch.weights * (errors - reference))}

    @torch.no_grad()
    def after_step(self) -> None:
        """Give the words their length back."""
        for word, vector in self.words.items():
            vector *= self.lengths[word] / vector.norm()


@dataclass(frozen=True)
class Dco(Baseline):
    """LoRA on attention layers' projections and a new word's embedding, held to the base model."""

    family: ClassVar = "dco"
    name: ClassVar = "DCO"
    joint: ClassVar = True
    decay: ClassVar = 1e-4

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        model = customisable(studio.base)
        words = {s.rare_word: embedding_of(model, s.word).requires_grad_() for s in subjects}
        lengths = {word: vector.detach().norm() for word, vector in words.items()}
        learn_words(model, words)
        unet = with_adapter(model, self.recipe, seed)
        adapter = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        trained = [ParameterGroup(adapter), ParameterGroup(words, WORD_RATE, weight_decay=0.0)]
        shown = self.materials(studio, model, subjects, list(words))

        def tensors() -> dict[str, Tensor]:
            return {**get_peft_model_state_dict(unet), **words}

        return DcoObjective(model, shown, self.recipe, trained, tensors, words, lengths)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        (one,) = learned
        model = customisable(studio.base)
        tensors = one.full(studio.base.denoiser.device)
        words = {s.rare_word: tensors.pop(s.rare_word) for s in one.subjects}
        learn_words(model, words)
        set_peft_model_state_dict(with_adapter(model, self.recipe), tensors)
        return Customised(model, tuple(words))
