"""What TinyWorld's base model is shown in training: captions of scenes, told so that a noun's value carries a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from infusion_core.attention import Plan, QueryKey, Reader
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.tinyworld.captions import OPENINGS, caption, random_aspects
from infusion_core.embedded.tinyworld.world import Scene
from infusion_core.injection import ConceptInjection
from infusion_core.residuals import Base, ConceptResidual
from infusion_core.sites import Site

from .text_encoder import noun, read

EMPTY = 0.1  # share of captions that say nothing, for classifier-free guidance
IN_THE_NOUN = 0.7  # share of the captions with a look whose look only the noun's value tells
REPLACED = 0.5  # share of these that attend with the maps of a pass that is not told the look


@dataclass(frozen=True)
class Nouns:
    """Nouns that the network reads.

    Attributes:
        rows, positions: where they stand, (N,).
        things: which of the scene's each of them is, (N,).
    """

    rows: Tensor
    positions: Tensor
    things: Tensor


@dataclass(frozen=True)
class Lesson:
    """What the network reads of a batch.

    Attributes:
        states: of the text, (B, 77, D).
        changes: of nouns, that values alone see, (M, D).
        rows, positions: where they act, (M,).
        replaced: rows that attend with the maps of a pass without changes, (K,).
        nouns: of all captions that say something.
    """

    states: Tensor
    changes: Tensor
    rows: Tensor
    positions: Tensor
    replaced: Tensor
    nouns: Nouns

    def plan(self, base: Base, maps: dict[str, QueryKey], *readers: Reader) -> Plan:
        """How the network reads it; `maps` are those of the rows that are replaced."""
        tensors = {site.name: self.changes[None] for site in base.sites}
        residual = ConceptResidual("noun", "layer", tensors, base.architecture, base.context_width)
        entries = torch.arange(len(self.rows), device=self.rows.device)
        concept = LoadedConcept("noun", residual)
        injection = ConceptInjection(self.rows, self.positions, entries, torch.zeros_like(entries), concept)
        return Plan(SomeSupplied(self.replaced, maps), readers, [injection])


@dataclass(frozen=True)
class SomeSupplied:
    """Some rows have maps that another pass recorded, the others their own."""

    rows: Tensor
    maps: dict[str, QueryKey]

    def __call__(self, site: Site, own: Any) -> QueryKey:
        """The pass's own query and key, those of `rows` exchanged."""
        query, key = own()
        if not len(self.rows):
            return query, key
        supplied_query, supplied_key = self.maps[site.name]
        return query.index_copy(0, self.rows, supplied_query), key.index_copy(0, self.rows, supplied_key)


@torch.no_grad()
def lesson(text_encoder: Any, scenes: list[Scene], rng: Random) -> Lesson:
    """Random captions of scenes.

    Of the captions that tell the look, most show the network the states of the same caption *without* the look; the
    noun's own state, with the look gathered into it, is seen by the values alone. So the noun's value must carry the
    look, as "siamese" carries a cat's; otherwise the network reads it off the colour words and a noun's value has no
    say in it. Half of these attend with their own maps, half with those of a pass that is not told the look, so that
    neither way of using a concept is what the network knows better.
    """
    shown: list[str] = []
    told: list[str] = []
    moves: list[tuple[int, int, int, int]] = []  # row in `told`, noun's position there, row in `shown`, position there
    replaced: list[int] = []
    nouns: list[tuple[int, int, int]] = []  # row in `shown`, position there, which thing
    for row, scene in enumerate(scenes):
        say, opening = random_aspects(rng), rng.choice(OPENINGS)
        text = "" if rng.random() < EMPTY else caption(scene, say, opening)
        if "look" in say and text and rng.random() < IN_THE_NOUN:
            bare = caption(scene, say - {"look"}, opening)
            moves += [(len(told), noun(text, thing.shape), row, noun(bare, thing.shape)) for thing in scene.things]
            told.append(text)
            text = bare
            if rng.random() < REPLACED:
                replaced.append(row)
        nouns += [(row, noun(text, thing.shape), i) for i, thing in enumerate(scene.things) if text]
        shown.append(text)
    states, full = read(text_encoder, shown + told).split([len(shown), len(told)])
    from_row, from_position, row, position = _columns(moves, 4, states.device)
    return Lesson(
        states,
        full[from_row, from_position] - states[row, position],
        row,
        position,
        torch.tensor(replaced, dtype=torch.long, device=states.device),
        Nouns(*_columns(nouns, 3, states.device)),
    )


def _columns(rows: Sequence[tuple[int, ...]], count: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, count).T
