"""The blueprints in the real page: found by their name, dropped on the canvas, wired and run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from comfyui_process.server import Server
from infusion_core.residual_file import save_concept

from .conftest import residual
from .examples import PHOTOS, prepare
from .page import find_browser, open_page, queue

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium found")
ONLY = "window.app.graph._nodes.length === 1 && window.app.graph._nodes[0].subgraph"
FACE = """() => { const node = window.app.graph._nodes[0];
  const names = (slots) => slots.filter((slot) => !slot.widget).map((slot) => slot.label ?? slot.name);
  const widgets = node.widgets.map((widget) => widget.name).filter((name) => !name.startsWith("$$"));
  return [names(node.inputs), names(node.outputs), widgets]; }"""
# Nodes by name: type, widgets, links from NODE.OUTPUT; "blueprint" is the one on the canvas.
WIRE = """(nodes) => {
  const made = { blueprint: window.app.graph._nodes[0] };
  for (const [name, [type]] of Object.entries(nodes)) {
    if (type) window.app.graph.add((made[name] = LiteGraph.createNode(type)));
  }
  for (const [name, [, widgets, links]] of Object.entries(nodes)) {
    for (const [key, value] of Object.entries(widgets)) {
      const widget = made[name].widgets.find((each) => each.name === key);
      widget.value = value;
      widget.callback?.(value);
    }
    const find = (slots, key) => slots.findIndex((slot) => (slot.label ?? slot.name) === key);
    for (const [key, [from, output]] of Object.entries(links)) {
      made[from].connect(find(made[from].outputs, output), made[name], find(made[name].inputs, key));
    }
  }
}"""
CHECKPOINT: dict[str, Any] = {"checkpoint": ["CheckpointLoaderSimple", {}, {}]}
TRAIN = CHECKPOINT | {
    "photos": ["InfusionLoadPhotos", {"photos": "\n".join(PHOTOS), "resolution": 128}, {}],
    "blueprint": [None, {"word": "circle", "steps": 2, "resolution": 128, "filename": "dropped"},
                  {"model": ["checkpoint", "MODEL"], "clip": ["checkpoint", "CLIP"], "vae": ["checkpoint", "VAE"],
                   "images": ["photos", "images"]}],
}  # fmt: skip
USE = CHECKPOINT | {
    "blueprint": [None, {"prompt": "a circle"}, {"model": ["checkpoint", "MODEL"], "clip": ["checkpoint", "CLIP"]}],
    "latent": ["EmptyLatentImage", {"width": 128, "height": 128}, {}],
    "sampler": ["KSampler", {"steps": 2}, {"model": ["blueprint", "MODEL"], "latent_image": ["latent", "LATENT"],
                "positive": ["blueprint", "positive"], "negative": ["blueprint", "negative"]}],
    "decode": ["VAEDecode", {}, {"samples": ["sampler", "LATENT"], "vae": ["checkpoint", "VAE"]}],
    "preview": ["PreviewImage", {}, {"images": ["decode", "IMAGE"]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    prepare(server)
    save_concept(server.base / "models" / "infusion" / "my-cat.safetensors", residual("circle", 1))
    with open_page(server) as opened:
        yield opened


def drop(page: Any, name: str) -> None:
    """Find a blueprint as a user does: a double click, its name, Enter."""
    page.evaluate("() => window.app.graph.clear()")
    while not page.locator("input:focus").is_visible():  # a page that is still drawing misses a double click
        page.mouse.dblclick(700, 600)
        page.wait_for_timeout(1500)
    page.keyboard.type(name)
    page.get_by_text("Blueprint").first.wait_for()
    page.wait_for_timeout(1000)  # the list is drawn anew while one types
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {ONLY}", timeout=600_000)


def test_a_training_is_dropped_and_run(server: Server, page: Any) -> None:
    drop(page, "Train a concept")
    assert page.evaluate(FACE) == [
        ["model", "clip", "vae", "images"],
        ["loss", "word", "concept"],
        ["word", "steps", "resolution", "filename"],
    ]
    page.evaluate(WIRE, TRAIN)
    assert queue(page, server)["status"]["status_str"] == "success"
    assert (server.output / "infusion" / "dropped.safetensors").is_file()


def test_concepts_are_dropped_and_drawn(server: Server, page: Any) -> None:
    drop(page, "Use concepts")
    assert page.evaluate(FACE) == [
        ["more concepts", "model", "clip"],
        ["MODEL", "positive", "negative"],
        ["concept", "strength", "prompt", "negative prompt"],
    ]
    page.evaluate(WIRE, USE)
    entry = queue(page, server)
    assert entry["status"]["status_str"] == "success"
    assert any(output.get("images") for output in entry["outputs"].values())
    sent = [node["inputs"].get("text") for node in entry["prompt"][2].values()]
    assert {"a circle", "blurry, low quality"} <= set(sent)
