"""Puts sheets on the canvas of ComfyUI's own page, and takes them from it as workflow files."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from typing import Any

from infusion_core import __version__
from tests.host.page import Page

from .arrange import arrange
from .sheet import Sheet

WIDTH = 340.0  # px, of a node that has no size of its own here
SIZES = {  # width and least height, px; Nodes 2.0 of ComfyUI 0.8.0 wants the most
    "APTTrain": (520.0, 1250.0),
    "CLIPTextEncode": (420.0, 150.0),
    "DreamBlendGuidance": (420.0, 450.0),
    "InfusionAttentionPatch": (340.0, 316.0),
    "InfusionLoadPhotos": (360.0, 590.0),
    "InfusionOverfitMetrics": (420.0, 460.0),
    "InfusionTrain": (400.0, 940.0),
    "InfusionTrainMany": (400.0, 600.0),
    "LoadImage": (300.0, 400.0),
    "PreviewAny": (380.0, 150.0),
    "PreviewImage": (400.0, 300.0),
    "SaveImage": (460.0, 520.0),
    "VAEDecode": (220.0, 0.0),
}
PACK, CORE = "infusion", "comfy-core"  # as the registry and ComfyUI's manager know them; the first is pyproject's name
CORE_VERSION = "0.8.0"  # the oldest that has every node of the examples
NAMESPACE = uuid.UUID("6f0b4c0e-6f7e-4a57-9d37-6d0f1d1f5a10")

LOAD = """async ([graph, name, sizes, width, titles]) => {
  await window.app.loadApiJson(graph, name);
  for (const node of window.app.graph._nodes) {
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
    if (titles[node.id]) node.title = titles[node.id];
    const [wide, high] = sizes[node.type] ?? [width, 0];
    node.setSize([wide, Math.max(high, node.computeSize()[1])]);
  }
  window.app.canvas.ds.scale = 0.1;
  window.app.canvas.ds.offset = [2000, 2000];
}"""
RENDER = "async (on) => await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
MEASURE = "() => Object.fromEntries(window.app.graph._nodes.map((node) => [node.id, [...node.size]]))"
PLACE = """([nodes, notes, groups]) => {
  const graph = window.app.graph;
  for (const node of graph._nodes) {
    const [x, y, w, h] = nodes[node.id];
    node.pos = [x, y];
    node.setSize([w, h]);
  }
  for (const [[x, y, w, h], text] of notes) {
    const note = LiteGraph.createNode("MarkdownNote");
    graph.add(note);
    note.pos = [x, y];
    note.setSize([w, h]);
    note.widgets[0].value = text;
    [note.title, note.color, note.bgcolor] = ["Note", "#432", "#000"];
  }
  for (const [[x, y, w, h], title, colour] of groups) {
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [x, y];
    group.size = [w, h];
    group.color = colour;
    graph.add(group);
  }
}"""
SERIALIZE = "() => JSON.stringify(window.app.graph.serialize())"  # as text: null is not the same as nothing


def put(page: Page, sheet: Sheet, name: str) -> dict[str, Any]:
    """Lay a sheet out on the canvas; the workflow that the page makes of it."""
    page.evaluate(LOAD, [sheet.graph.nodes, name, SIZES, WIDTH, sheet.titles])
    placed = arrange(sheet, largest(page))
    notes = [(rect, part.note) for rect, part in zip(placed.notes, sheet.parts, strict=True)]
    groups = [(rect, part.title, part.colour) for rect, part in zip(placed.groups, sheet.parts, strict=True)]
    page.evaluate(PLACE, [placed.nodes, notes, groups])
    return finished(json.loads(page.evaluate(SERIALIZE)), sheet, name)


def largest(page: Page) -> dict[str, tuple[float, float]]:
    """What every node takes with the classic nodes and with Nodes 2.0, whichever is more; px."""
    classic = page.evaluate(MEASURE)
    page.evaluate(RENDER, True)
    page.wait_for_timeout(1500)
    modern = page.evaluate(MEASURE)
    page.evaluate(RENDER, False)
    page.wait_for_timeout(500)
    return {node: (width, max(height, modern[node][1])) for node, (width, height) in classic.items()}


def finished(workflow: dict[str, Any], sheet: Sheet, name: str) -> dict[str, Any]:
    """The workflow with the packs and downloads of its nodes, and the same id whenever it is written."""
    for node in workflow["nodes"]:
        belong(node)
        if (download := sheet.downloads.get(str(node["id"]))) is not None:
            node["properties"]["models"] = [asdict(download)]
    workflow["id"] = str(uuid.uuid5(NAMESPACE, name))
    workflow["extra"].pop("ds", None)
    return workflow


def belong(node: dict[str, Any]) -> None:
    """Write which pack a node is of, so that a page without it can say so and install it."""
    ours = node["type"].startswith(("Infusion", "DreamBlend", "CheckpointAdvisor", "APT"))
    node["properties"] |= {"cnr_id": PACK, "ver": __version__} if ours else {"cnr_id": CORE, "ver": CORE_VERSION}
