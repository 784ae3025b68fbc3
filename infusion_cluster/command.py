"""The command ``infusion train-many``: its options alone. What it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infusion_cli.options import Config, LayoutOption, Model, Seed, checked_path, place
from infusion_core.errors import InfusionError, not_installed
from infusion_core.residual_file import Storage
from infusion_core.training.residual import ResidualSettings

_DEFAULT = ResidualSettings()


def train_many(
    manifest: Annotated[
        Path,
        typer.Argument(
            callback=checked_path, help="A folder of folders of photos, or a .csv or .jsonl that lists them."
        ),
    ],
    out: Annotated[Path, place(help="Folder for the concept files, logs/ and report.json.")],
    word: Annotated[str, typer.Option(help="Class word of entries that say none; else the folder's name.")] = "",
    model: Model = "tinyworld",
    config: Config = None,
    workers: Annotated[int, typer.Option(min=0, help="0: one per GPU, or one per four processors.")] = 0,
    together: Annotated[
        int, typer.Option(min=1, max=64, help="Concepts that share a run at most: faster, with more memory.")
    ] = 8,
    address: Annotated[str, typer.Option(help="Of a Ray cluster; this machine by default.")] = "",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = _DEFAULT.steps,
    batch_size: Annotated[int, typer.Option(help="Samples per pass and concept.")] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = _DEFAULT.learning_rate,
    layout: LayoutOption = _DEFAULT.layout,
    bins: Annotated[int, typer.Option(help="Timestep bins, each with its own residual.")] = _DEFAULT.bins,
    storage: Annotated[Storage, typer.Option(help="How to store the numbers.")] = "fp16",
    seed: Seed = _DEFAULT.seed,
) -> None:
    """Learn many concepts, several in one run, on one machine or many (needs the extra 'cluster').

    A list may set word, out, steps, seed and other settings for each entry. Concepts that are there, of the same
    photos, word, settings and model, are not learned again. A job that fails keeps no other from being done.
    """
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise InfusionError(not_installed("Ray", "standalone,cluster")) from error
    from .manifest import Defaults
    from .train_many import ManyRequest, run_many

    settings = ResidualSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, layout=layout, bins=bins, seed=seed
    )
    run_many(ManyRequest(manifest, Defaults(out, settings, word), model, config, workers, together, address, storage))
