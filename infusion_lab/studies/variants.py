"""What studies of Infusion's own parts share."""

from __future__ import annotations

from dataclasses import dataclass

from ..methods.infusion import Infusion


@dataclass(frozen=True)
class Variant:
    """A way of training Infusion and of sampling with it, under a name."""

    name: str
    method: Infusion
