"""``infusion``, or ``python -m infusion_cli``."""

from __future__ import annotations

import os
import signal
import sys

from infusion_core.errors import not_installed


def main() -> None:
    """Run the command line; say what to install if its libraries are missing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        from .app import run

        run()
    except ModuleNotFoundError as error:  # commands import when they run
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("infusion"):
            raise
        sys.exit(f"Error: {not_installed(missing)}")


def _leave(number: int, _: object) -> None:
    """End at once and without a word. Nothing is unwound, so no library that is being imported can answer.

    What must not be lost at Ctrl-C is for `console.Interrupt`; files are whole at any moment (`infusion_core.atomic`).
    """
    if os.isatty(1):
        os.write(1, b"\x1b[?25h\n")  # a progress bar may have hidden the cursor
    os._exit(128 + number)


if __name__ == "__main__":
    main()
