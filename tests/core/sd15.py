"""SD1.5's cross-attention layers, written down by hand from its published architecture."""

from __future__ import annotations

from infusion_core.residuals import Base
from infusion_core.sites import Site

_LEVELS = (
    [(f"input.{n}.0", "down.0", 320) for n in (1, 2)]
    + [(f"input.{n}.0", "down.1", 640) for n in (4, 5)]
    + [(f"input.{n}.0", "down.2", 1280) for n in (7, 8)]
    + [("middle.0.0", "mid", 1280)]
    + [(f"output.{n}.0", "up.1", 1280) for n in (3, 4, 5)]
    + [(f"output.{n}.0", "up.2", 640) for n in (6, 7, 8)]
    + [(f"output.{n}.0", "up.3", 320) for n in (9, 10, 11)]
)
SD15 = Base("sd1", 768, "epsilon", tuple(Site(*level) for level in _LEVELS))
