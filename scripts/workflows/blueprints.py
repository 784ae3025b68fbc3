"""The blueprints: parts of a workflow that the page offers as one node."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfyui_process.graph import Output
from infusion_core import __version__
from infusion_core.training.residual import ResidualSettings
from tests.host.page import Page

from .arrange import APART, GAP, TITLE
from .canvas import LOAD, NAMESPACE, PACK, SIZES, WIDTH, belong, largest
from .pieces import READING, checkpoint, patch, photos, prompts
from .sheet import Sheet

CATEGORY = "Infusion"
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Blueprint:
    """A subgraph to be.

    Attributes:
        sheet: a whole workflow, so that what crosses the subgraph's edge is linked.
        inner: the nodes that go into it, in columns from left to right.
        widgets: shown on its face: label, type, node, widget.
        labels: of its sockets whose own names do not tell what they are for.
        about: one sentence for the library.
    """

    sheet: Sheet
    inner: tuple[tuple[Output, ...], ...]
    widgets: tuple[tuple[str, str, Output, str], ...]
    labels: dict[str, str]
    about: str


def train() -> Blueprint:
    sheet = Sheet()
    model, clip, vae = checkpoint(sheet, "")
    default = ResidualSettings()
    trained = sheet.graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=photos(sheet)[0], word="cat", steps=default.steps,
        batch_size=default.batch_size, learning_rate=default.learning_rate, layout=default.layout, bins=default.bins,
        resolution=512, seed=0, preview_every=default.snapshot_every, captions="",
        replace_maps=default.replace_maps, maps_end=default.replacement_end,
    )  # fmt: skip
    saved = sheet.graph.add("InfusionSaveConcept", concept=trained[0], filename="my-concept", storage="fp16")
    sheet.graph.add("InfusionAttentionPatch", model=model, clip=clip, concept=saved)
    sheet.graph.add("PreviewImage", images=trained[1])
    sheet.graph.add("PreviewAny", source=trained[2])
    widgets = (
        ("word", "STRING", trained, "word"),
        ("steps", "INT", trained, "steps"),
        ("resolution", "INT", trained, "resolution"),
        ("filename", "STRING", saved, "filename"),
    )
    about = "Learn a subject from photos and save it as a concept."
    return Blueprint(sheet, ((trained,), (saved,)), widgets, {}, about)


def use() -> Blueprint:
    sheet = Sheet()
    model, clip, _ = checkpoint(sheet, "")
    more = sheet.graph.add("InfusionLoadConcept", concept_name="my-dog.safetensors")
    concept = sheet.graph.add("InfusionLoadConcept", concept_name="my-cat.safetensors", strength=1.0, previous=more)
    patched = patch(sheet, model, clip, concept)
    positive, negative = prompts(sheet, patched[1], READING)
    sheet.graph.add("KSampler", model=patched[0], positive=positive, negative=negative)
    widgets = (
        ("concept", "COMBO", concept, "concept_name"),
        ("strength", "FLOAT", concept, "strength"),
        ("prompt", "STRING", positive, "text"),
        ("negative prompt", "STRING", negative, "text"),
    )
    labels = {"previous": "more concepts", "CONDITIONING": "positive", "CONDITIONING_1": "negative"}
    about = "Put concepts on a model and write the prompts; more concepts come in from a loader or another trainer."
    return Blueprint(sheet, ((concept,), (patched,), (positive, negative)), widgets, labels, about)


# The page puts widgets of its own choice on a subgraph's face; those go before ours come.
WRAP = """([name, places, widgets, labels]) => {
  const graph = window.app.graph;
  const inner = graph._nodes.filter((node) => places[node.id]);
  for (const node of inner) [node.pos, node.size] = [places[node.id].slice(0, 2), places[node.id].slice(2)];
  const { subgraph, node } = graph.convertToSubgraph(new Set(inner));
  const isWidget = (link) => subgraph.getNodeById(link.target_id).inputs[link.target_slot].widget;
  for (const input of [...subgraph.inputs]) {
    if (input.linkIds.map((id) => subgraph.links.get(id)).some(isWidget)) subgraph.removeInput(input);
    else if (labels[input.name]) subgraph.renameInput(input, labels[input.name]);
  }
  for (const output of subgraph.outputs) if (labels[output.name]) subgraph.renameOutput(output, labels[output.name]);
  for (const [label, type, id, widget] of widgets) {
    const target = subgraph._nodes.find((each) => String(each.id) === id);
    subgraph.addInput(label, type).connect(target.inputs.find((slot) => slot.widget?.name === widget), target);
  }
  subgraph.name = node.title = name;
  node.pos = [0, 0];
  node.setSize([400, node.computeSize()[1]]);
  const whole = graph.serialize();
  const saved = whole.nodes.find((each) => String(each.id) === String(node.id));
  for (const slot of saved.inputs) slot.link = null;
  for (const slot of saved.outputs) slot.links = [];
  const definition = whole.definitions.subgraphs.find((each) => each.id === subgraph.id);
  return JSON.stringify([saved, definition]);
}"""


def publish(page: Page, blueprint: Blueprint, name: str) -> dict[str, Any]:
    """The blueprint's file: a workflow of one node, whose subgraph it holds."""
    page.evaluate(LOAD, [blueprint.sheet.graph.nodes, name, SIZES, WIDTH, blueprint.sheet.titles])
    places = _places(page, blueprint)
    widgets = [(label, kind, node.node, widget) for label, kind, node, widget in blueprint.widgets]
    node, definition = json.loads(page.evaluate(WRAP, [name, places, widgets, blueprint.labels]))
    definition |= {"category": CATEGORY, "description": blueprint.about}
    for each in definition["nodes"]:
        belong(each)
    node["properties"] |= {"cnr_id": PACK, "ver": __version__}
    whole = {"revision": 0, "last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [],
             "version": 0.4, "definitions": {"subgraphs": [definition]}, "extra": {}}  # fmt: skip
    return json.loads(_same_ids(json.dumps(whole), name))  # type: ignore[no-any-return]


def _places(page: Page, blueprint: Blueprint) -> dict[str, tuple[float, float, float, float]]:
    sizes, places, left = largest(page), dict[str, tuple[float, float, float, float]](), 0.0
    for column in blueprint.inner:
        top = 0.0
        for node in column:
            width, height = sizes[node.node]
            places[node.node] = (left, top, width, height)
            top += height + GAP + TITLE
        left += max(sizes[node.node][0] for node in column) + APART
    return places


def _same_ids(text: str, name: str) -> str:
    """The page draws ids at random; these are the same whenever the file is written."""
    for i, found in enumerate(dict.fromkeys(ID.findall(text))):
        text = text.replace(found, str(uuid.uuid5(NAMESPACE, f"{name} {i}")))
    return text


BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {"Train a concept": train, "Use concepts": use}
