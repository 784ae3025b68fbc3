"""The host's page in a headless browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright

from comfyui_process.server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.InfusionTrain"
GREETED = "() => window.app.graph._nodes.length > 0"

# What is on the canvas: titles stand above a node's place, and Nodes 2.0 takes its sizes from the page.
CANVAS = """(modern) => {
  const { graph, canvas } = window.app;
  const shown = (node) => {
    const { x, y, width, height } = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const { scale, offset } = canvas.ds;
    const above = canvas.canvas.getBoundingClientRect();
    return [(x - above.x) / scale - offset[0], (y - above.y) / scale - offset[1], width / scale, height / scale];
  };
  const drawn = ({ pos, size, ...node }, least) => [pos[0], pos[1] - 30, size[0], Math.max(size[1], least) + 30];
  return {
    nodes: graph._nodes.map((node) => ({
      type: node.type,
      missing: !LiteGraph.registered_node_types[node.type],
      deprecated: !!node.constructor.nodeData?.deprecated,
      rectangle: modern ? shown(node) : drawn(node, node.computeSize()[1]),
    })),
    groups: graph._groups.map((group) => ({ rectangle: [...group._bounding] })),
    complaints: [...document.querySelectorAll(".p-toast-message, .p-dialog")].map((each) => each.innerText),
  };
}"""


def find_browser() -> str | None:
    """A Chromium on this machine."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def open_page(server: Server) -> Iterator[Page]:
    """ComfyUI's page, with the workflow that greets a new user: one that came later would take another's place."""
    server.post("/settings/Comfy.TutorialCompleted", True)  # a new user is greeted with a dialog
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(QUIET))
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(server.address)
        page.wait_for_function(READY, timeout=900_000)
        page.wait_for_function(GREETED, timeout=300_000)
        yield page
        browser.close()


def load_workflow(page: Page, workflow: dict[str, Any], zoom: float = 0.5) -> None:
    """Open a workflow as the page does when one is dropped on it, all in sight: the page loads pictures it can see."""
    page.evaluate(
        """async ([workflow, zoom]) => {
             await window.app.loadGraphData(workflow);
             window.app.canvas.ds.scale = zoom;
             window.app.canvas.ds.offset = [60, 140];
             window.app.canvas.setDirty(true, true);
           }""",
        [workflow, zoom],
    )


def render(page: Page, modern: bool) -> None:
    """Switch between classic nodes and Nodes 2.0."""
    page.evaluate("(on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", modern)


def read_canvas(page: Page, modern: bool) -> dict[str, Any]:
    """Nodes and groups with their rectangles (left, top, width, height), and what the page complains of."""
    return page.evaluate(CANVAS, modern)  # type: ignore[no-any-return]


def set_widget(page: Page, node: str, widget: str, value: Any) -> None:
    """Change a widget on every node of a type."""
    page.evaluate(
        """([type, name, value]) => window.app.graph._nodes.filter((n) => n.type === type).forEach((n) => {
             const widget = n.widgets.find((w) => w.name === name);
             widget.value = value;
             widget.callback?.(value);
           })""",
        [node, widget, value],
    )


def queue(page: Page, server: Server, timeout: float = 1500) -> dict[str, Any]:
    """Press Queue and wait; the history entry of the run."""
    before = set(server.get("/history"))
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        page.wait_for_timeout(200)
        for run, entry in server.get("/history").items():
            if run not in before and entry.get("status", {}).get("status_str"):
                return entry  # type: ignore[no-any-return]
    raise TimeoutError(f"the page's prompt did not end; see {server.log}")
