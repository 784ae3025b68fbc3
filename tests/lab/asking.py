"""The command as a user gives it."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from infusion_lab.command import lab


def ask_lab(*options: str) -> None:
    """Run ``infusion lab`` with these options; raises what it raises."""
    app = typer.Typer()
    app.command()(lab)
    found = CliRunner().invoke(app, options)
    if found.exception:
        raise found.exception
