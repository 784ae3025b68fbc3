"""``infusion``, or ``python -m infusion_cli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say what to install if its libraries are missing."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {error.name} is not installed; run: pip install 'infusion[standalone]'")
    run()


if __name__ == "__main__":
    main()
