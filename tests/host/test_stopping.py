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
from .test_apt import WIDGETS as APT
from .test_training import WIDGETS as INFUSION

NODES: dict[str, dict[str, Any]] = {
    "InfusionTrain": {**INFUSION, "learning_rate": 0.4, "steps": 60, "preview_every": 2},
    "APTTrain": {**APT, "restrain": False, "learning_rate": 0.008, "steps": 120, "preview_every": 4},
}


def learned(
    server: Server, photos: list[str], node: str, name: str, **changed: Any
) -> tuple[list[str], dict[str, torch.Tensor], dict[str, str]]:
    """What a run says, what comes out of it, and what its file tells."""
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
    if node == "APTTrain":
        return ran.texts, load_file(file), {}
    concept = load_concept(file)
    return ran.texts, dict(concept.tensors), dict(concept.training)


@pytest.mark.parametrize("node", NODES)
def test_a_run_ends_at_rest_or_gives_the_snapshot_at_which_it_rested(
    server: Server, photos: list[str], node: str
) -> None:
    steps, every = NODES[node]["steps"], NODES[node]["preview_every"]
    texts, ended, told = learned(server, photos, node, f"{node}-ended", stop="plateau")
    (said,) = [text for text in texts if text.startswith("ended at step")]
    found = re.fullmatch(rf"ended at step (\d+) of {steps}: it has come to rest \(stop\)", said)
    assert found is not None, said
    step = int(found[1])
    assert 3 * every < step < steps
    texts, best, told_of_best = learned(server, photos, node, f"{node}-best", take="best")
    (said,) = [text for text in texts if text.startswith("what comes out")]
    found = re.fullmatch(r"what comes out is (\S+)/step-(\d+), at which the run came to rest", said)
    assert found is not None, said
    assert int(found[2]) == step
    assert any(f"step {steps} of {steps}" in text for text in texts)
    assert ended.keys() == best.keys()
    for name, tensor in ended.items():
        torch.testing.assert_close(best[name].half(), tensor.half(), rtol=0, atol=0)
    assert told.get("steps", str(step)) == told_of_best.get("steps", str(step)) == str(step)
    _, last, _ = learned(server, photos, node, f"{node}-last")
    assert any(not torch.equal(last[name].half(), tensor.half()) for name, tensor in ended.items())
    assert "measuring the training took" in server.log.read_text()
