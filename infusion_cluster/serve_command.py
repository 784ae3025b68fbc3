"""The command ``infusion serve``: its options alone. What it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infusion_cli.options import Config, Guidance, Model, Steps, place
from infusion_core.errors import InfusionError, not_installed

from .asked import LIMITS, Limits


def serve(
    concepts: Annotated[Path, place(help="Folder of concept files; a request names one as its file is called.")],
    model: Model = "tinyworld",
    config: Config = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all that reach this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    address: Annotated[str, typer.Option(help="Of a Ray cluster; this machine by default.")] = "",
    replicas: Annotated[int, typer.Option(min=0, help="0: one per GPU, or one per four processors.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Pictures per pass at most.")] = 8,
    wait_ms: Annotated[
        int, typer.Option(min=0, max=10_000, help="How long a picture waits for others to share its pass.")
    ] = 20,
    waiting: Annotated[
        int, typer.Option(min=1, help="Pictures that a replica is asked for at once; more are turned away (503).")
    ] = LIMITS.waiting,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Draw pictures for others over HTTP, of many concepts in one batch (needs the extra 'cluster').

    POST /draw takes {"prompt": "a cat", "concepts": ["tom", {"name": "rex", "strength": 0.8}], "seed": 0,
    "negative": ""} and gives a PNG. It knows no users: keep it behind a door of your own.
    """
    try:
        from ray import serve as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise InfusionError(not_installed("Ray Serve", "standalone,cluster")) from error
    from .serving import ServeRequest, run_serve

    limits = Limits(waiting=waiting)
    sampling = {"steps": steps, "guidance": guidance}
    run_serve(
        ServeRequest(concepts, model, config, host, port, address, replicas, batch, wait_ms / 1000, limits, sampling)
    )
