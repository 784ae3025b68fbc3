"""How the rows of a forward pass are told apart: which conditioning they belong to, and which stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError

Entry = tuple[int, UUID]  # one conditioning of a prediction: index of its list, and its uuid
_EVERY_BIT = (1 << 128) - 1


class BaseRow(UUID):
    """The uuid of a conditioning's rows in the base stream: one of its own, since step caches keep outputs by uuid."""

    @classmethod
    def of(cls, uuid: UUID) -> BaseRow:
        """The base stream's twin of a conditioning."""
        return cls(int=uuid.int ^ _EVERY_BIT)

    @property
    def original(self) -> UUID:
        """The conditioning's own uuid."""
        return UUID(int=self.int ^ _EVERY_BIT)


@dataclass(frozen=True)
class Batch:
    """The rows of a forward: tile by tile, in a tile conditioning by conditioning, in a conditioning by pictures.

    Attributes:
        entries: the conditionings.
        tiles: parts of the picture that run in one forward.
        pictures: rows of a conditioning in a tile.
    """

    entries: tuple[Entry, ...]
    tiles: int
    pictures: int

    @property
    def total(self) -> int:
        """Rows in all."""
        return self.tiles * len(self.entries) * self.pictures

    def part(self, rows: Tensor, index: int) -> Tensor:
        """The rows of one conditioning, a view (tiles, pictures, ...) of rows (total, ...)."""
        return rows.reshape(self.tiles, len(self.entries), self.pictures, *rows.shape[1:])[:, index]

    def rows(self, index: int) -> list[int]:
        """The numbers of the rows of one conditioning."""
        return self.part(torch.arange(self.total), index).flatten().tolist()

    def entry(self, row: int) -> Entry:
        """The conditioning that a row belongs to."""
        return self.entries[row // self.pictures % len(self.entries)]


def batch_of(extra: Mapping[str, Any], context: Tensor, pictures: int, node: str) -> Batch:
    """How a forward with text context (rows, L, D) is laid out.

    Args:
        extra: the host's options of the forward.
        context: of every row.
        pictures: in the latent batch.
        node: that asks.

    Raises:
        InfusionError: another node changed the rows, and not as tiles are.
    """
    entries, total = tuple(zip(extra["cond_or_uncond"], extra["uuids"], strict=True)), len(context)
    tiles, rest = divmod(total, len(entries) * pictures)
    one = context[: len(entries) * pictures]
    if not rest and (tiles == 1 or (tiles and torch.equal(context, one.repeat(tiles, 1, 1)))):
        return Batch(entries, tiles, pictures)
    if not tiles and not total % len(entries):
        return Batch(entries, 1, total // len(entries))
    raise InfusionError(
        f"another node changed the rows of the model's batch before {node} saw them ({total} rows for {len(entries)} "
        f"prompts and a batch of {pictures}); leave that node out"
    )


def site_name(extra: Mapping[str, Any]) -> str:
    """The name of the site that calls a patch."""
    side, number = extra["block"]
    return f"{side}.{number}.{extra['block_index']}"
