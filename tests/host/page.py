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


def find_browser() -> str | None:
    """A Chromium on this machine."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def open_page(server: Server) -> Iterator[Page]:
    """ComfyUI's page, loaded and empty."""
    server.post("/settings/Comfy.TutorialCompleted", True)  # a new user is greeted with a dialog
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(QUIET))
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(server.address)
        page.wait_for_function(READY, timeout=900_000)
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
