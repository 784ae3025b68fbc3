"""How the rows of a forward pass are told apart: which conditioning they belong to, and which stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from ...infusion_core.errors import InfusionError

Entry = tuple[int, UUID]  # one conditioning of a prediction: index of its list, and its uuid
Rows = list[tuple[Entry, slice]]  # conditionings of a forward and their rows
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


def rows_of(extra: Mapping[str, Any], total: int, pictures: int, node: str) -> Rows:
    """The conditionings of a forward of `total` rows, and the rows of each.

    Args:
        extra: the host's options of the forward.
        total: rows.
        pictures: in the batch.
        node: that asks.

    Raises:
        InfusionError: another patch added rows.
    """
    entries = list(zip(extra["cond_or_uncond"], extra["uuids"], strict=True))
    if total % len(entries) or total > len(entries) * pictures:
        raise InfusionError(
            f"another node changed the rows of cross-attention before {node} saw them ({total} rows for {len(entries)} "
            f"prompts and a batch of {pictures}); put {node} in front of that node, or leave one of them out"
        )
    size = total // len(entries)
    return [(entry, slice(i * size, (i + 1) * size)) for i, entry in enumerate(entries)]


def repeats_of(length: int, padded: int) -> range:
    """Where a context of `length` positions begins again in one of `padded`: the host pads by repeating it."""
    return range(0, padded, length)


def site_name(extra: Mapping[str, Any]) -> str:
    """The name of the site that calls a patch."""
    side, number = extra["block"]
    return f"{side}.{number}.{extra['block_index']}"
