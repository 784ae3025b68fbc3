"""Perfusion (arXiv 2305.01644): gated rank-one edits, keys locked to the class word, values learned.

At every cross-attention layer a projection W becomes, for a text state e (paper eq. 4 to 6),

    h = W e_perp + sum_j o_j sigmoid((s_j - beta) / tau),    s_j = <i_j, e> / <i_j, i_j>,    <a, b> = a^T C^-1 b,

where i_j is the running mean of concept j's own text state, e_perp is e less its projection onto all i_j in that inner
product, and C is the uncentred covariance of text states. For keys o_j = W i_class (locked); for values o_j is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.training.objective import ParameterGroup

from ..studio import Studio, customisable, last_token, text_states, token_ids
from .baseline import Baseline, BaselineObjective
from .method import Customised, Learned, Subject
from .new_words import embedding_of, learn_words

BETA, TAU = 0.75, 0.1  # the paper's gate in training; in drawing the bias may be less, see `Recipe.gate`
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
        bias: beta of the gate.
    """

    def __init__(self, base: nn.Linear, inputs: Tensor, outputs: Tensor, metric: Tensor, bias: float = BETA) -> None:
        super().__init__()
        self.base, self.out_features, self.bias = base, base.out_features, bias
        self.inputs, self.outputs, self.metric = inputs, outputs, metric

    def forward(self, states: Tensor) -> Tensor:
        """(R, L, D) to (R, L, O)."""
        products = self.inputs @ self.metric @ self.inputs.T  # (J, J)
        along = states @ self.metric @ self.inputs.T  # (R, L, J)
        perpendicular = states - along @ torch.linalg.inv(products) @ self.inputs
        gates = torch.sigmoid((along / products.diagonal() - self.bias) / TAU)
        out: Tensor = self.base(perpendicular) + gates @ self.outputs
        return out


@dataclass
class PerfusionObjective(BaselineObjective):
    """Noise prediction, with a running mean of the concept's text state.

    Attributes:
        state: the mean, (D,); the edits hold this very tensor.
        word: whose state it follows.
    """

    state: Tensor
    word: str

    @torch.no_grad()
    def after_step(self) -> None:
        self.state.lerp_(_state_of(self.model, self.word), 1 - DECAY)

    def extra_state(self) -> dict[str, Tensor]:
        return {"state": self.state.clone()}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        self.state.copy_(extra["state"])


@dataclass(frozen=True)
class Perfusion(Baseline):
    """A word's embedding and one value per layer; the recipe's learning rate is the values'."""

    family: ClassVar = "perfusion"
    name: ClassVar = "Perfusion"
    joint: ClassVar = False
    decay: ClassVar = 0.0

    @property
    def application(self) -> object:
        return self.recipe.gate

    def objective(self, studio: Studio, subjects: Sequence[Subject], seed: int) -> BaselineObjective:
        (subject,) = subjects
        model = customisable(studio.base)
        word = embedding_of(model, subject.word).requires_grad_()
        learn_words(model, {subject.rare_word: word})
        start = _state_of(model, subject.word)
        state = start.clone()
        keys, values = _targets(model, start)
        _install(model, state[None], {**keys, **values}, _inverse(studio.text_covariance))
        trained = [ParameterGroup(values), ParameterGroup({"word": word}, WORD_RATE)]
        shown = self.materials(studio, model, subjects, [subject.rare_word])

        def tensors() -> dict[str, Tensor]:
            return {"word": word, "state": state, **keys, **values}

        return PerfusionObjective(model, shown, self.recipe, trained, tensors, state, subject.rare_word)

    def apply(self, studio: Studio, learned: Sequence[Learned]) -> Customised:
        model = customisable(studio.base)
        parts = [one.full(studio.base.denoiser.device) for one in learned]
        words = [one.subjects[0].rare_word for one in learned]
        learn_words(model, {word: part["word"] for word, part in zip(words, parts, strict=True)})
        outputs = {path: torch.cat([p[path] for p in parts]) for path in parts[0] if path not in ("word", "state")}
        states, metric = torch.stack([p["state"] for p in parts]), _inverse(studio.text_covariance)
        _install(model, states, outputs, metric, self.recipe.gate)
        return Customised(model, tuple(words))


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


def _install(
    model: EmbeddedModel, inputs: Tensor, outputs: dict[str, Tensor], metric: Tensor, bias: float = BETA
) -> None:
    """Put the edits into a model's UNet; `inputs` (J, D), `outputs` (J, O) by path of the projection."""
    for path, module, name in list(_projections(model)):
        setattr(module, name, GatedEdit(getattr(module, name), inputs, outputs[path], metric, bias))
