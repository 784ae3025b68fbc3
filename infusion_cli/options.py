"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from infusion_core.residuals import Layout

Model = Annotated[
    str,
    typer.Option(help="'tinyworld', or a local Stable Diffusion 1.x/2.x/XL: diffusers folder or .safetensors file."),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="For a --model that is one file: a diffusers folder of its kind, for configs and tokenizer."),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
LayoutOption = Annotated[Layout, typer.Option(help="Where the residual lives; block is the smallest.")]
