"""The real page: every example workflow opens, runs and shows its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from comfyui_process.host import REPOSITORY
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept

from .conftest import residual
from .examples import PHOTOS, prepare
from .page import find_browser, load_workflow, open_page, queue, read_canvas, render, set_widget

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium found")
EXAMPLES = sorted((REPOSITORY / "example_workflows").glob("*.json"))
SMALL = {
    "EmptyLatentImage": {"width": 128, "height": 128},
    "KSampler": {"steps": 2},
    "InfusionLoadPhotos": {"photos": "\n".join(PHOTOS), "resolution": 128},  # a user uploads their own
    "InfusionTrain": {"steps": 2, "resolution": 128, "preview_every": 1},
    "APTTrain": {"steps": 2, "resolution": 128, "preview_every": 1},
    "InfusionOverfitMetrics": {"draws": 4, "resolution": 128},
}

Rectangle = tuple[float, float, float, float]  # left, top, width, height


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """By more than a hair."""
    return all(one[i] + 1 < other[i] + other[i + 2] and other[i] + 1 < one[i] + one[i + 2] for i in (0, 1))


def within(inner: Rectangle, outer: Rectangle) -> bool:
    return all(outer[i] - 1 <= inner[i] and inner[i] + inner[i + 2] <= outer[i] + outer[i + 2] + 1 for i in (0, 1))


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    prepare(server)
    for name, word in (("my-cat", "cat"), ("my-dog", "dog"), ("my-backpack", "backpack")):
        save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", residual(word, 1))
    with open_page(server) as opened:
        yield opened


def test_there_are_seven_examples_with_pictures() -> None:
    assert len(EXAMPLES) == 7
    assert all(path.with_suffix(".jpg").is_file() for path in EXAMPLES)


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "Nodes 2.0"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_whole_and_nothing_in_it_overlaps(page: Any, path: Path, modern: bool) -> None:
    render(page, modern)
    load_workflow(page, json.loads(path.read_text()), zoom=0.25)
    page.wait_for_timeout(2000)  # every node takes the size of what is in it
    canvas = read_canvas(page, modern)
    render(page, False)
    assert canvas["complaints"] == []
    assert [node for node in canvas["nodes"] if node["missing"] or node["deprecated"]] == []
    nodes, groups = ([thing["rectangle"] for thing in canvas[kind]] for kind in ("nodes", "groups"))
    assert [pair for kind in (nodes, groups) for pair in combinations(kind, 2) if overlap(*pair)] == []
    assert [node for node in canvas["nodes"] if sum(within(node["rectangle"], group) for group in groups) != 1] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_opens_runs_and_shows_its_picture(server: Server, page: Any, path: Path) -> None:
    load_workflow(page, json.loads(path.read_text()), zoom=0.25)
    for node, widgets in SMALL.items():
        for widget, value in widgets.items():
            set_widget(page, node, widget, value)
    entry = queue(page, server)
    assert entry["status"]["status_str"] == "success"
    shown = [output for output in entry["outputs"].values() if output.get("images")]
    assert shown
    page.wait_for_function(
        "() => window.app.graph._nodes.some((n) => ['SaveImage', 'PreviewImage'].includes(n.type)"
        " && n.imgs?.length && n.imgs[0].naturalWidth > 0)",
        timeout=600_000,
    )
    page.screenshot(path=server.base / f"{path.stem}.png")


def test_the_loader_shows_what_a_file_holds(server: Server, page: Any) -> None:
    load_workflow(page, json.loads((REPOSITORY / "example_workflows" / "2-use-a-concept.json").read_text()), zoom=1.0)
    page.wait_for_function("() => document.body.innerText.includes('\"cat\" · tinyworld')", timeout=600_000)
    page.screenshot(path=server.base / "loader.png")
    colour = page.evaluate("() => window.app.canvas.default_connection_color_byType.INFUSION_CONCEPT")
    assert colour == "#e0873e"


def test_the_host_serves_templates_and_scripts(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")["infusion"]) == [path.stem for path in EXAMPLES]
    assert server.read("/extensions/infusion/infusion.js").startswith("// Socket colours")


def test_the_host_lists_the_blueprints(server: Server) -> None:
    """As custom nodes' subgraphs, each of which the host can read."""
    listed = {key: entry for key, entry in server.get("/global_subgraphs").items() if "infusion" in str(entry["info"])}
    assert {entry["name"] for entry in listed.values()} == {"Train a concept", "Use concepts"}
    for key in listed:
        (node,) = json.loads(server.get(f"/global_subgraphs/{key}")["data"])["nodes"]
        assert node["type"]
