"""What ComfyUI shows in other languages: titles, labels, tooltips and help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from comfyui_process.server import Server
from scripts.locales import LANGUAGES, definitions, read

from .page import find_browser, open_page

TYPES = ("MODEL", "CLIP")  # an output that is called as its type has the type's name in the page's own words
LANGUAGE = "zh"  # one that the page offers; its menu has no German
PLACE = """(type) => { window.app.graph.clear(); const node = LiteGraph.createNode(type); window.app.graph.add(node);
  window.app.canvas.ds.scale = 1; window.app.canvas.ds.offset = [300, 100]; window.app.canvas.setDirty(true, true); }"""
SHOWN = """() => { const node = window.app.graph._nodes[0], key = (slot) => slot.name.replaceAll(".", "_");
  return { title: node.title, outputs: node.outputs.map((o) => [o.name, o.localized_name]),
    sockets: Object.fromEntries(node.inputs.map((i) => [key(i), i.localized_name])),
    widgets: Object.fromEntries(node.widgets.map((w) => [key(w), w.label])) }; }"""
SLOT = """(name) => { const node = window.app.graph._nodes[0], frame = window.app.canvas.canvas.getBoundingClientRect();
  const [x, y] = node.getInputPos(node.inputs.findIndex((i) => i.name === name));
  return [300 + x + frame.x, 100 + y + frame.y]; }"""
TOOLTIP = "(text) => [...document.querySelectorAll('.node-tooltip')].some((e) => e.innerText === text)"


@pytest.fixture(scope="module")
def page(server: Server, concepts: Any) -> Iterator[Any]:
    if find_browser() is None:
        pytest.skip("no Chromium found")
    server.post("/settings/Comfy.Locale", LANGUAGE)
    with open_page(server) as opened:
        yield opened
    server.post("/settings/Comfy.Locale", "en")


def wait_for_tooltip(page: Any, name: str, text: str) -> None:
    """Point at an input of the first node until its tooltip is there; a page that is still starting may miss a move."""
    for _ in range(60):
        x, y = page.evaluate(SLOT, name)  # a widget has its place when the node has been drawn
        page.mouse.move(x, y + 300)
        page.mouse.move(x, y)
        page.mouse.move(x + 1, y)
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(TOOLTIP, arg=text, timeout=5_000)
            return
    raise AssertionError(f"no tooltip {text!r}")


def test_english_is_what_the_nodes_say(server: Server) -> None:
    assert read("en") == definitions(server)


def test_the_host_has_every_language(server: Server) -> None:
    served = server.get("/i18n")
    for language in ("en", *LANGUAGES):
        assert served[language]["nodeDefs"].items() >= read(language).items()


@pytest.mark.parametrize("path", ["InfusionTrain.md", "InfusionTrain/de.md", "InfusionTrain/zh.md"])
def test_the_host_serves_help_where_the_page_asks_for_it(server: Server, path: str) -> None:
    assert server.read(f"/extensions/infusion/docs/{path}").startswith("# Infusion ")


@pytest.mark.parametrize("node", sorted(read(LANGUAGE)))
def test_a_node_shows_its_names_in_the_users_language(page: Any, node: str) -> None:
    page.evaluate(PLACE, node)
    shown, wanted = page.evaluate(SHOWN), read(LANGUAGE)[node]
    assert shown["title"] == wanted["display_name"]
    for (english, name), entry in zip(shown["outputs"], wanted["outputs"].values(), strict=True):
        assert english in TYPES or name == entry["name"]
    for kind in ("sockets", "widgets"):
        ours = {key: name for key, name in shown[kind].items() if key in wanted["inputs"]}
        assert ours
        assert ours == {key: wanted["inputs"][key]["name"] for key in ours}


@pytest.mark.parametrize(
    ("node", "name"),
    [("InfusionTrain", "word"), ("InfusionAttentionPatch", "concept"), ("InfusionLoadConcepts", "concepts.concept_1")],
)
def test_a_tooltip_is_in_the_users_language(page: Any, node: str, name: str) -> None:
    page.evaluate(PLACE, node)
    wait_for_tooltip(page, name, read(LANGUAGE)[node]["inputs"][name.replace(".", "_")]["tooltip"])
