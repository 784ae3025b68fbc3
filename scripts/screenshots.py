"""Write docs/comfyui/: every example and every node in ComfyUI's own page, as classic nodes and as Nodes 2.0 draw it.

python scripts/screenshots.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comfyui_process.host import REPOSITORY, require_host
from infusion_core.residual_file import save_concept
from tests.host.conftest import residual
from tests.host.examples import prepare
from tests.host.page import load_workflow, open_page, read_canvas
from tests.host.serving import serve

FOLDER = REPOSITORY / "docs" / "comfyui"
ZOOM, MARGIN, TOP = 0.8, 40, 130  # px round the graph, and of the page's own bars above it
COLOURS = 64
SIZE = """() => ["0", "1"].map((axis) => Math.max(...window.app.graph._groups.map((group) =>
  group._bounding[+axis] + group._bounding[+axis + 2])))"""
PLACE = """([zoom, x, y]) => { const canvas = window.app.canvas; canvas.ds.scale = zoom;
  canvas.ds.offset = [x / zoom, y / zoom]; canvas.setDirty(true, true); }"""

# The page remembers widgets by their node's number, so every node gets a number of its own.
ALONE = """([type, number]) => { const { graph, canvas } = window.app; graph.clear(); graph.state.lastNodeId = number;
  const node = LiteGraph.createNode(type); graph.add(node); node.pos = [0, 0]; canvas.ds.scale = 1;
  canvas.ds.offset = [120, 160]; canvas.setDirty(true, true); }"""
OURS = """() => Object.entries(LiteGraph.registered_node_types)
  .filter(([, node]) => (node.category ?? "").split("/")[0] === "Infusion").map(([type]) => type).sort()"""


def shoot(page: Any, workflow: dict[str, Any], path: Path) -> None:
    """One graph, with a little room round it, in few colours."""
    load_workflow(page, workflow, ZOOM)
    width, height = (round(edge * ZOOM) for edge in page.evaluate(SIZE))
    page.set_viewport_size({"width": width + 4 * MARGIN, "height": height + TOP + 4 * MARGIN})
    page.evaluate(PLACE, [ZOOM, 2 * MARGIN, TOP])
    page.wait_for_timeout(4000)
    clip = {"x": MARGIN, "y": TOP - MARGIN // 2, "width": width + 2 * MARGIN, "height": height + MARGIN}
    with Image.open(BytesIO(page.screenshot(clip=clip))) as taken:
        save(taken.convert("RGB"), path)


def save(picture: Image.Image, path: Path) -> None:
    picture.quantize(COLOURS).save(path, optimize=True)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures side by side, on the colour of their corner."""
    size = (left.width + right.width, max(left.height, right.height))
    both = Image.new("RGB", size, left.getpixel((0, 0)))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def shoot_nodes(page: Any, modern: bool) -> dict[str, Image.Image]:
    """Every node of the pack by its id, alone and as it comes."""
    taken = {}
    page.set_viewport_size({"width": 1200, "height": 1400})
    for number, node in enumerate(page.evaluate(OURS)):
        page.evaluate(ALONE, [node, 1000 + number])
        page.wait_for_timeout(2000)
        x, y, width, height = read_canvas(page, modern)["nodes"][0]["rectangle"]
        clip = {"x": x + 120 - 12, "y": y + 160 - 28, "width": width + 24, "height": height + 40}
        taken[node] = Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")
    return taken


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        server = serve(require_host(), Path(base))
        try:
            prepare(server)
            for name, word in (("my-cat", "cat"), ("my-dog", "dog"), ("my-backpack", "backpack")):
                save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", residual(word, 1))
            server.post("/settings/Comfy.Minimap.Visible", False)
            nodes = {}
            for kind in ("classic", "nodes-2"):
                server.post("/settings/Comfy.VueNodes.Enabled", kind == "nodes-2")
                with open_page(server) as page:
                    for file in sorted((REPOSITORY / "example_workflows").glob("*.json")):
                        shoot(page, json.loads(file.read_text()), FOLDER / f"{file.stem}-{kind}.png")
                    nodes[kind] = shoot_nodes(page, kind == "nodes-2")
            for node, classic in nodes["classic"].items():
                save(beside(classic, nodes["nodes-2"][node]), FOLDER / f"{node}.png")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
