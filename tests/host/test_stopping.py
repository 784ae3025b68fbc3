"""Runs of both trainers that end where they rest, or give the snapshot at which they did."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.residual_file import load_concept

from . import graphs
from .learning import WIDGETS as INFUSION
from .test_apt import WIDGETS as APT

# Rates at which little is learned after the first snapshot, so that the rule's third slow one comes soon.
NODES: dict[str, dict[str, Any]] = {
    "InfusionTrain": {**INFUSION, "batch_size": 1, "learning_rate": 0.4, "steps": 220, "preview_every": 25},
    "APTTrain": {**APT, "restrain": False, "learning_rate": 0.001, "steps": 610, "preview_every": 50},
}
REST = {"InfusionTrain": [200], "APTTrain": [400, 500, 600]}  # the earliest there can be, and for a LoRA later ones


def learned(
    server: Server, photos: list[str], node: str, name: str, **changed: Any
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What a run says, and what comes out of it."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    inputs = {**NODES[node], "seed": 91, **changed}
    made = graph.add(node, model=model, clip=clip, vae=vae, images=graphs.images(graph, photos), **inputs)
    if node == "APTTrain":
        graph.add("SaveLoRA", lora=made[2], prefix=f"stopping/{name}")
    else:
        graph.add("InfusionSaveConcept", concept=made, filename=f"stopping/{name}", storage="fp16")
    ran = server.run(graph)
    (file,) = server.output.rglob(f"stopping/{name}*.safetensors")
    return ran.texts, load_file(file)


@pytest.mark.parametrize("node", NODES)
def test_what_comes_out_is_the_snapshot_at_which_the_run_came_to_rest(
    server: Server, photos: list[str], node: str
) -> None:
    texts, best = learned(server, photos, node, f"{node}-best", take="best")
    steps = NODES[node]["steps"]
    (said,) = [text for text in texts if text.startswith("what comes out")]
    found = re.fullmatch(r"what comes out is (\S+)/step-(\d+), at which the run came to rest", said)
    assert found is not None, said
    assert int(found[2]) in REST[node]
    assert any(f"step {steps} of {steps}" in text for text in texts)
    (folder,) = server.output.rglob(found[1])
    kept = load_file(folder / f"step-{found[2]}.safetensors")
    last = load_file(folder / f"step-{steps:05d}.safetensors")
    assert best.keys() == kept.keys()
    for name, tensor in kept.items():
        assert torch.equal(best[name].to(tensor), tensor), name
    assert any(not torch.equal(last[name], tensor) for name, tensor in kept.items())
    assert "measuring the training took" in server.log.read_text()


def test_a_run_ends_where_it_comes_to_rest(server: Server, photos: list[str]) -> None:
    texts, _ = learned(server, photos, "InfusionTrain", "ended", stop="plateau")
    assert "ended at step 200 of 220: it has come to rest (stop)" in texts
    ended = load_concept(server.output / "infusion" / "stopping" / "ended.safetensors")
    assert ended.training["steps"] == "200"
