"""What the terminal shows: progress bars, one line for an error, exit codes.

Nothing else prints. Whatever text comes here is shown as it is: rich reads no markup in it, and what a terminal would
obey (escape sequences, line breaks, letters that turn the direction of writing) is spelt out by `printable`.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infusion_core.errors import InfusionError, printable

console = Console(highlight=False)
LONGEST_LINE = 5000  # letters: any path, and what goes with it
LONGEST_CELL = 1000
STOPPED = 128  # exit code of a command stopped by a signal, beside the signal's number


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar; the value is called as ``advance(note="...")`` after each unit of work."""
    # Here, so that --help need not wait for it.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim", markup=False))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(printable(title), total=total, note="")

        def advance(note: str = "", steps: int = 1) -> None:
            bar.update(task, advance=steps, note=printable(note))

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


def show_anything() -> None:
    """Let output that is not UTF-8 spell out the letters it lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print one line; long paths are never wrapped."""
    console.print(Text(printable(text, LONGEST_LINE)), soft_wrap=True)


def say_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column holds names and whose others hold numbers, which are never cut."""
    table = Table(title=_cell(title), box=SIMPLE)
    for index, heading in enumerate(header):
        if not index:
            table.add_column(_cell(heading))
            continue
        width = max(map(cell_len, [*heading.split(), *(line[index] for line in lines)]), default=1)
        table.add_column(_cell(heading), justify="right", width=width)  # headings of several words wrap
    for line in lines:
        table.add_row(*map(_cell, line))
    console.print(table)


def say_facts(title: str, facts: Mapping[str, object]) -> None:
    """Print a table of names and what they are."""
    table = Table(title=_cell(title), show_header=False)
    for name, fact in facts.items():
        table.add_row(_cell(name), _cell(str(fact)))
    console.print(table)


def say_json(value: Mapping[str, Any]) -> None:
    """Print JSON for other programs, in ASCII without control characters."""
    console.file.write(json.dumps(value, indent=2).replace("\x7f", "\\u007f") + "\n")


def fail(error: InfusionError) -> NoReturn:
    """Print an error as one line and exit with code 1."""
    line = Text.assemble(("Error:", "red"), " ", printable(str(error), LONGEST_LINE))
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    sys.exit(1)


def _cell(text: str) -> Text:
    return Text(printable(text, LONGEST_CELL))
