"""What the terminal shows: progress bars, one line for an error, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infusion_core.errors import InfusionError

console = Console(highlight=False)
STOPPED = 128  # exit code of a command stopped by a signal, beside the signal's number


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar; the value is called as ``advance(note="...")`` after each unit of work."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("[dim]{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(note: str = "", steps: int = 1) -> None:
            bar.update(task, advance=steps, note=note)

        yield advance


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that work stops between two steps; a second stops at once."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """What a command ends with that such a signal stopped: 130 or 143."""
        return STOPPED + (self._number or 0)

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self._number = number
        self.__exit__()


def say(text: str) -> None:
    """Print one line; long paths are never wrapped."""
    console.print(text, soft_wrap=True)


def say_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column holds names and whose others hold numbers."""
    table = Table(title=title, box=SIMPLE)
    for index, heading in enumerate(header):
        table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def fail(error: InfusionError) -> NoReturn:
    """Print an error as one line and exit with code 1."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]Error:[/red] {_plain(str(error))}")
    sys.exit(1)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("[", "\\[")
