"""Perfusion (arXiv 2305.01644): gated rank-one edits, keys locked to the class word, values learned.

At every cross-attention layer a projection W becomes, for a text state e (paper eq. 4 to 6),

    h = W e_perp + sum_j o_j sigmoid((s_j - beta) / tau),    s_j = <i_j, e> / <i_j, i_j>,    <a, b> = a^T C^-1 b,

where i_j is the running mean of concept j's own text state, e_perp is e less its projection onto all i_j in that inner
product, and C is the uncentred covariance of text states. For keys o_j = W i_class (locked); for values o_j is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.model import EmbeddedModel

from ..studio import Studio, customisable, last_token, text_states, token_ids
from .fitting import batches, fit
from .method import Baseline, Customised, Learned, Snapshot, Subject, full
from .new_words import embedding_of, learn_words

BETA, TAU = 0.75, 0.1  # the paper's gate in training
DECAY = 0.99  # of the running mean of the concept's text state
WORD_RATE = 0.2  # learning rate of the word's embedding over that of the values: the paper's 0.006 and 0.03
RIDGE = 1e-4  # share of C's mean diagonal added to it before it is inverted


class GatedEdit(nn.Module):
    """A projection with gated rank-one edits of J concepts.

    Args:
        base: the frozen projection, without bias.
        inputs: target inputs i, (J, D).
        outputs: target outputs o, (J, O).
        metric: C^-1, (D, D).
    """

    def __init__(self, base: nn.Linear, inputs: Tensor, outputs: Tensor, metric: Tensor) -> None:
        super().__init__()
        self.base, self.out_features = base, base.out_features
        self.inputs, self.outputs, self.metric = inputs, outputs, metric

    def forward(self, states: Tensor) -> Tensor:
        """(R, L, D) to (R, L, O)."""
        products = self.inputs @ self.metric @ self.inputs.T  # (J, J)
        along = states @ self.metric @ self.inputs.T  # (R, L, J)
        perpendicular = states - along @ torch.linalg.inv(products) @ self.inputs
        gates = torch.sigmoid((along / products.diagonal() - BETA) / TAU)
        out: Tensor = self.base(perpendicular) + gates @ self.outputs
        return out


@dataclass(frozen=True)
class Perfusion(Baseline):
    """A word's embedding and one value per layer; the recipe's learning rate is the values'."""

    key: ClassVar = "perfusion"
    title: ClassVar = "Perfusion"
    joint: ClassVar = False

    def train(
        self, studio: Studio, subjects: Sequence[Subject], marks: Sequence[int], seed: int = 0
    ) -> Iterator[Snapshot]:
        """See `Method.train`."""
        (subject,) = subjects
        model = customisable(studio.base)
        word = embedding_of(model, subject.word).requires_grad_()
        learn_words(model, {subject.mark: word})
        start = _state_of(model, subject.word)
        state, metric = start.clone(), _inverse(studio.text_covariance)
        keys, values = _targets(model, start)
        _install(model, state[None], {**keys, **values}, metric)
        groups = [
            {"params": list(values.values()), "lr": self.recipe.learning_rate, "weight_decay": 0.0},
            {"params": [word], "lr": self.recipe.learning_rate * WORD_RATE, "weight_decay": 0.0},
        ]

        @torch.no_grad()
        def follow() -> None:
            state.lerp_(_state_of(model, subject.mark), 1 - DECAY)

        def tensors() -> dict[str, Tensor]:
            return {"word": word, "state": state, **keys, **values}

        draw = batches(studio, model, subjects, [subject.mark], self.recipe, CAPTION_TEMPLATES)
        return fit(model, groups, draw, subjects, tensors, marks, seed, follow)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        """See `Method.apply`."""
        model = customisable(studio.base)
        parts = [full(one, studio.base.denoiser.device) for one in learned]
        subjects = [one.subjects[0] for one in learned]
        learn_words(model, {s.mark: part["word"] for s, part in zip(subjects, parts, strict=True)})
        outputs = {path: torch.cat([p[path] for p in parts]) for path in parts[0] if path not in ("word", "state")}
        _install(model, torch.stack([p["state"] for p in parts]), outputs, _inverse(studio.text_covariance))
        return Customised(model, tuple(s.mark for s in subjects))


def _inverse(covariance: Tensor) -> Tensor:
    """C^-1, with a small ridge."""
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    inverse: Tensor = torch.linalg.inv((covariance + ridge).double()).to(covariance)
    return inverse


def _state_of(model: EmbeddedModel, word: str) -> Tensor:
    """Mean text state (D,) of a word over the training captions."""
    texts = fill(CAPTION_TEMPLATES, word)
    with torch.no_grad():
        mean: Tensor = text_states(model, texts)[token_ids(model, texts) == last_token(model, word)].mean(0)
    return mean


def _projections(model: EmbeddedModel) -> Iterator[tuple[str, Any, str]]:
    """Path, attention module and attribute of every cross-attention key and value projection."""
    for path, module in model.denoiser.unet.named_modules():
        if path.endswith(".attn2"):
            for name in ("to_k", "to_v"):
                yield f"{path}.{name}", module, name


@torch.no_grad()
def _targets(model: EmbeddedModel, state: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs (1, O) of every key and every value projection for a text state; the values are to be learned."""
    keys: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for path, module, name in _projections(model):
        (keys if name == "to_k" else values)[path] = getattr(module, name)(state[None])
    return keys, {path: v.requires_grad_() for path, v in values.items()}


def _install(model: EmbeddedModel, inputs: Tensor, outputs: dict[str, Tensor], metric: Tensor) -> None:
    """Put the edits into a model's UNet; `inputs` (J, D), `outputs` (J, O) by path of the projection."""
    for path, module, name in list(_projections(model)):
        setattr(module, name, GatedEdit(getattr(module, name), inputs, outputs[path], metric))
