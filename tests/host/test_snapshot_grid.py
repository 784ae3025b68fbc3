"""Snapshot Grid in the real host: its cells against core nodes that draw the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.grid import labelled_grid

from . import graphs
from .learning import WIDGETS as INFUSION
from .test_apt import WIDGETS as APT

PROMPTS = ("a big circle on pink", "a small circle on teal")
WIDGETS: dict[str, Any] = {
    "prompts": "\n".join(PROMPTS), "strengths": "1, 0.5", "snapshot_steps": "", "size": 128, "seed": 5, "steps": 3,
    "cfg": 3.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(server: Server, photos: list[str]) -> dict[str, str]:
    """A run of each trainer, as the node lists them."""
    listed: dict[str, str] = {}
    for node, inputs in (("InfusionTrain", {**INFUSION, "learning_rate": 0.2}), ("APTTrain", APT)):
        graph, before = Graph(), choices(server)
        model, clip, vae = graphs.load(graph)
        images = graphs.images(graph, photos)
        made = graph.add(node, model=model, clip=clip, vae=vae, images=images, **{**inputs, "seed": 77})
        graph.add("PreviewImage", images=made[1 if node == "InfusionTrain" else 4])
        server.run(graph)
        (listed[node],) = {*choices(server)} - {*before}
    return listed


def choices(server: Server) -> list[str]:
    kind, options = server.get("/object_info/InfusionSnapshotGrid")["InfusionSnapshotGrid"]["input"]["required"]["run"]
    return options["options"] if kind == "COMBO" else kind  # type: ignore[no-any-return]


def grid(server: Server, run: str, **changed: Any) -> Image.Image:
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    node = graph.add("InfusionSnapshotGrid", model=model, clip=clip, vae=vae, run=run, **{**WIDGETS, **changed})
    return saved(server, graph, node, "snapshot-grid")


def saved(server: Server, graph: Graph, images: Output, name: str) -> Image.Image:
    graph.add("SaveImage", images=images, filename_prefix=name)
    server.run(graph)
    with Image.open(sorted(server.output.glob(f"{name}_*.png"))[-1]) as picture:
        return picture.convert("RGB")


def alone(server: Server, run: str, step: int, strength: float, prompt: str) -> Image.Image:
    """A cell, drawn by the nodes that a user would take."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    if run.startswith("apt/"):
        name, both = f"{run}/step-{step:05d}.safetensors", {"strength_model": strength, "strength_clip": strength}
        loaded = graph.add("LoraLoader", model=model, clip=clip, lora_name=name, **both)
        model, clip = loaded[0], loaded[1]
    else:
        concept = graph.add("InfusionLoadSnapshot", snapshot=f"{run}/step-{step:05d}", strength=strength)
        asked = {**graphs.PATCH, "maps_end": 0.4}
        patched = graph.add("InfusionAttentionPatch", model=model, clip=clip, concept=concept, **asked)
        model, clip = patched[0], patched[1]
    texts = graphs.encode(graph, clip, prompt), graphs.encode(graph, clip, "")
    how = {"sampler_name": "dpmpp_2m", "scheduler": "karras", "steps": 3, "cfg": 3.0, "seed": 5}
    drawn = graph.add("VAEDecode", samples=graphs.sample(graph, model, *texts, **how), vae=vae)
    return saved(server, graph, drawn, "snapshot-alone")


@pytest.mark.parametrize("node", ["InfusionTrain", "APTTrain"])
def test_a_cell_is_what_a_snapshot_draws_alone(server: Server, runs: dict[str, str], node: str) -> None:
    rows = [
        (f"step {step}, strength {strength:g}", [alone(server, runs[node], step, strength, p) for p in PROMPTS])
        for step in (3, 6)
        for strength in (1.0, 0.5)
    ]
    drawn = grid(server, runs[node])
    wanted = labelled_grid(rows, PROMPTS)
    assert drawn.size == wanted.size
    apart = np.abs(np.asarray(drawn, dtype=int) - np.asarray(wanted, dtype=int))
    assert apart.max() <= 2  # one of the two rounds, the other cuts off
    pictures = [picture for _, row in rows for picture in row]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_some_steps_may_be_chosen(server: Server, runs: dict[str, str]) -> None:
    run = runs["InfusionTrain"]
    chosen = grid(server, run, snapshot_steps="6", strengths="1", prompts=PROMPTS[0])
    assert np.array_equal(chosen, labelled_grid([("step 6", [cell(chosen)])], PROMPTS[:1]))
    assert np.array_equal(cell(chosen), cell(grid(server, run, strengths="1", prompts=PROMPTS[0])))


def cell(grid: Image.Image) -> Image.Image:
    """The last one."""
    width, height = grid.size
    return grid.crop((width - 6 - 128, height - 6 - 128, width - 6, height - 6))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompts": " "}, "a grid needs at least one prompt and one strength"),
        ({"strengths": ""}, "a grid needs at least one prompt and one strength"),
        ({"strengths": "1, much"}, "'1, much' is no list of numbers"),
        ({"snapshot_steps": "5"}, "there is no snapshot of step 5 in .*; choose of: 3, 6"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    server: Server, runs: dict[str, str], changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(PromptError, match=told):
        grid(server, runs["InfusionTrain"], **changed)
