"""Photos that keep their shape: which sizes there are, and training on several, one in each batch.

Trainers of LoRAs call it aspect-ratio buckets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Generic

import torch
from torch import Generator, Tensor

from ..errors import InfusionError
from .objective import Learned, Objective, ParameterGroup
from .shown import in_turn

Size = tuple[int, int]  # width and height, px
COMMON_STEP = 64  # px: the multiple that trainers use for every Stable Diffusion
COMMON_EDGE = 512  # px: of squares from this edge on
LONGEST = 4  # times the shorter edge; of a longer photo the middle is taken


def step_of(edge: int, factor: int) -> int:
    """What edges are a multiple of, px.

    Args:
        edge: of the square that photos are about as large as.
        factor: by which a model makes pictures smaller, first to latents and then within.
    """
    return COMMON_STEP if edge >= COMMON_EDGE else factor


def size_for(photo: Size, edge: int, step: int) -> Size:
    """The size that a photo is scaled to: of its shape as nearly as can be, and no larger in all than the square.

    Args:
        photo: its size.
        edge: of the square, px; that is one of the sizes, a multiple of `step` or not.
        step: px that all other edges are a multiple of.
    """
    most = edge * edge
    sizes = [(edge, edge)]
    for width in range(step, most // step + 1, step):
        height = most // width // step * step
        if height and max(width, height) <= LONGEST * min(width, height):
            sizes += [(width, height), (height, width)]
    wanted = math.log(photo[0] / photo[1])
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - wanted), -size[0] * size[1], size))


def grouped(photos: Sequence[Size], edge: int, step: int) -> dict[Size, list[int]]:
    """The numbers of the photos of each size, the sizes in order of their first photo."""
    found: dict[Size, list[int]] = {}
    for number, photo in enumerate(photos):
        found.setdefault(size_for(photo, edge, step), []).append(number)
    return found


class ShapedObjective(Generic[Learned]):
    """One thing that is learned from photos of several sizes.

    A batch is of one size; the chance of each is its share of the photos, so that every photo is seen as often.

    Args:
        members: an objective for each size; all train the same tensors.
        photos: how many each has.

    Raises:
        InfusionError: no members.
    """

    def __init__(self, members: Sequence[Objective[Learned]], photos: Sequence[int]) -> None:
        if not members:
            raise InfusionError("no photos to learn from; give at least one")
        self.members = tuple(members)
        self._whose = torch.tensor([n for n, count in enumerate(photos) for _ in range(count)])  # of each photo

    def groups(self) -> Sequence[ParameterGroup]:
        """Those of every member."""
        return self.members[0].groups()

    def losses(self, generator: Generator) -> Mapping[str, Tensor]:
        """The losses of one batch of one size."""
        photo = torch.randint(len(self._whose), (), generator=generator)
        return self.members[int(self._whose[photo])].losses(generator)

    def validation(self, draws: int, seed: int) -> Tensor:
        """Unweighted losses (draws,), levels of noise ascending; photos, and so sizes, take turns (`in_turn`)."""
        turns = sorted(Counter(self._whose[in_turn(len(self._whose), draws)].tolist()).items())
        levels = torch.cat([(torch.arange(count) + 0.5) / count for _, count in turns])
        losses = torch.cat([self.members[number].validation(count, seed) for number, count in turns])
        return losses[levels.argsort(stable=True)]

    def after_step(self) -> None:
        """What follows a step follows it once."""
        self.members[0].after_step()

    def learned(self) -> Learned:
        """What has been learned so far."""
        return self.members[0].learned()

    def extra_state(self) -> Mapping[str, Tensor]:
        """That of every member."""
        return self.members[0].extra_state()

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.members[0].restore(extra)


def on_shapes(members: Sequence[Objective[Learned]], photos: Sequence[int]) -> Objective[Learned]:
    """An objective on photos of several sizes; of one size it is the one member itself. See `ShapedObjective`."""
    return members[0] if len(members) == 1 else ShapedObjective(members, photos)


def first_member(objective: Objective[Learned]) -> Objective[Learned]:
    """An objective on one size of photos; all share what is learned and how overfitted it is."""
    return objective.members[0] if isinstance(objective, ShapedObjective) else objective
