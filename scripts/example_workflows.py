"""Write example_workflows/ and their thumbnails, and the blueprints in subgraphs/, laid out by ComfyUI's own page.

    python scripts/example_workflows.py

The workflows are written for a stock SD1.5 checkpoint. The thumbnails are made by running them with TinyWorld in its
place: three of its concepts stand in for the cat, the dog and the backpack.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comfyui_process.host import REPOSITORY, require_host
from comfyui_process.server import Server
from scripts.workflows.blueprints import BLUEPRINTS, publish
from scripts.workflows.canvas import put
from scripts.workflows.examples import EXAMPLES
from scripts.workflows.thumbnails import learn, thumbnail
from tests.host.examples import prepare
from tests.host.page import open_page
from tests.host.serving import serve

FOLDER, SUBGRAPHS = REPOSITORY / "example_workflows", REPOSITORY / "subgraphs"


def write(server: Server) -> None:
    """The workflow files."""
    with open_page(server) as page:
        for name, build in EXAMPLES.items():
            (FOLDER / f"{name}.json").write_text(json.dumps(put(page, build(), name), indent=1) + "\n")
        for name, blueprint in BLUEPRINTS.items():
            (SUBGRAPHS / f"{name}.json").write_text(json.dumps(publish(page, blueprint(), name), indent=1) + "\n")


def draw(server: Server, steps: int, names: list[str]) -> None:
    """The thumbnails."""
    learn(server.base / "models", steps)
    for name in names:
        thumbnail(server, EXAMPLES[name]().graph, FOLDER / f"{name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the stand-ins")
    parser.add_argument(
        "--thumbnails", nargs="*", default=list(EXAMPLES), help="of which examples; none after it: none"
    )
    args = parser.parse_args()
    host = require_host()
    for folder in (FOLDER, SUBGRAPHS):
        folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        server = serve(host, Path(base))
        try:
            prepare(server)
            write(server)
            if args.thumbnails:
                draw(server, args.steps, args.thumbnails)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
