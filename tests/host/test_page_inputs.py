"""What our own widgets do in the real page: several uploads at once, and rows that keep what was chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

from comfyui_process.server import Server

from .page import GREETED, READY, find_browser, open_page, queue

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium found")
PLACE = """(types) => { window.app.graph.clear();
  for (const type of types) { const node = LiteGraph.createNode(type); window.app.graph.add(node); }
  if (types.length > 1) window.app.graph._nodes[0].connect(0, window.app.graph._nodes[1], 0); }"""
WIDGETS = "() => Object.fromEntries(window.app.graph._nodes[0].widgets.map((w) => [w.name, w.value]))"


@pytest.fixture(scope="module")
def page(server: Server, concepts: Any) -> Iterator[Any]:
    with open_page(server) as opened:
        yield opened


def change(page: Any, name: str, value: Any) -> None:
    """Change a widget of the first node as a user does."""
    page.evaluate(
        """([name, value]) => { const w = window.app.graph._nodes[0].widgets.find((w) => w.name === name);
             w.value = value; w.callback?.(value); }""",
        [name, value],
    )


def press_upload(page: Any) -> Any:
    """The dialog that the button opens; a page that is still starting may not open it at once."""
    for _ in range(100):
        with contextlib.suppress(TimeoutError), page.expect_file_chooser(timeout=5_000) as chooser:
            page.evaluate("() => window.app.graph._nodes[0].widgets.find((w) => w.name === 'upload').callback()")
        with contextlib.suppress(TimeoutError):
            return chooser.value
    raise AssertionError("no dialog opened")


def test_several_photos_are_uploaded_at_once_and_shown(server: Server, page: Any, tmp_path: Path) -> None:
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"uploaded-{name}.png")
    (tmp_path / "uploaded-zero.png").write_bytes(b"not a picture")
    page.evaluate(PLACE, ["InfusionLoadPhotos", "PreviewImage"])
    chooser = press_upload(page)
    assert chooser.is_multiple()
    chooser.set_files(sorted(tmp_path.iterdir()))
    page.wait_for_function(f"() => ({WIDGETS})().photos.includes('zero')", timeout=600_000)
    assert page.evaluate(WIDGETS)["photos"] == "uploaded-one.png\nuploaded-two.png\nuploaded-zero.png"
    entry = queue(page, server)
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function("() => document.body.innerText.includes('1 skipped: uploaded-zero.png')", timeout=600_000)
    page.wait_for_function("() => window.app.graph._nodes[0].imgs?.length === 2", timeout=600_000)


def test_rows_keep_what_was_chosen_when_one_is_added(server: Server, page: Any) -> None:
    page.evaluate(PLACE, ["InfusionLoadConcepts"])
    change(page, "concepts.concept_1", "peak.safetensors")
    change(page, "concepts.strength_1", 0.4)
    change(page, "concepts", "3")
    wanted = {"concepts": "3", "concepts.concept_1": "peak.safetensors", "concepts.strength_1": 0.4}
    assert page.evaluate(WIDGETS).items() >= wanted.items()
    page.evaluate("() => window.app.loadGraphData(JSON.parse(JSON.stringify(window.app.graph.serialize())))")
    change(page, "concepts", "4")
    now = page.evaluate(WIDGETS)
    assert now.items() >= {**wanted, "concepts": "4"}.items()
    assert "concepts.strength_4" in now


def test_rows_list_what_has_come_since_the_page_was_opened(server: Server, page: Any) -> None:
    page.evaluate(PLACE, ["InfusionLoadConcepts"])
    folder = server.base / "models" / "infusion"
    (folder / "newcomer.safetensors").write_bytes((folder / "round.safetensors").read_bytes())
    page.evaluate("() => window.app.refreshComboInNodes()")
    listed = """() => window.app.graph._nodes[0].widgets.filter((w) => w.name.startsWith("concepts.concept"))
      .map((w) => w.options.values.includes("newcomer.safetensors"))"""
    page.wait_for_function(f"() => {{ const all = ({listed})(); return all.length && all.every(Boolean); }}")
    change(page, "concepts", "3")
    assert page.evaluate(listed) == [True] * 3


LINK = """([input, type, value]) => {
  const graph = window.app.graph, node = graph._nodes[0], given = LiteGraph.createNode(type);
  graph.add(given);
  given.widgets[0].value = value;
  given.connect(0, node, node.inputs.findIndex((i) => i.name === input));
}"""


def test_a_loader_whose_file_is_chosen_elsewhere_says_which_was_used(server: Server, page: Any) -> None:
    facts = "() => window.app.graph._nodes[0].widgets.find((w) => w.name === 'facts').element.innerText"
    page.evaluate(PLACE, ["InfusionLoadConcept", "PreviewAny"])
    change(page, "concept_name", "peak.safetensors")
    page.wait_for_function(f"() => ({facts})().includes('layout')")
    page.evaluate(LINK, ["concept_name", "TestConceptName", "round.safetensors"])
    page.wait_for_function(f"() => ({facts})() === ''")
    assert queue(page, server)["status"]["status_str"] == "success"
    page.wait_for_function(f"() => ({facts})().startsWith('round: ')")


def test_photos_are_not_uploaded_into_a_list_that_comes_from_elsewhere(
    server: Server, page: Any, tmp_path: Path
) -> None:
    page.evaluate(PLACE, ["InfusionLoadPhotos"])
    page.evaluate(LINK, ["photos", "PrimitiveStringMultiline", "there.png"])
    chooser = press_upload(page)
    Image.new("RGB", (8, 8)).save(tmp_path / "ignored.png")
    chooser.set_files([tmp_path / "ignored.png"])
    page.locator(".p-toast-message", has_text="comes from outside this node").first.wait_for(state="visible")
    assert "ignored" not in page.evaluate(WIDGETS)["photos"]
    assert not (server.base / "input" / "ignored.png").exists()


def test_seeds_stay_as_they_are_from_run_to_run(server: Server, page: Any) -> None:
    """Of every node of the pack that has one; on a fresh page, for what one node shows the next one may keep."""
    kinds = server.get("/object_info")
    ours = {name: kind for name, kind in kinds.items() if kind["python_module"] == "custom_nodes.infusion"}
    seeded = [name for name, kind in ours.items() if "seed" in kind["input"]["required"]]
    assert {"InfusionTrain", "InfusionTrainMany", "APTTrain", "CheckpointAdvisor"} <= {*seeded}
    shown = {}
    for node in [*seeded, "KSampler"]:
        page.reload()
        page.wait_for_function(READY, timeout=900_000)
        page.wait_for_function(GREETED, timeout=300_000)
        page.evaluate(PLACE, [node])
        shown[node] = page.evaluate(WIDGETS)["control_after_generate"]
    assert shown == {**dict.fromkeys(seeded, "fixed"), "KSampler": "randomize"}  # which the host's own seeds are
