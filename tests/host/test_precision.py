"""Training on weights that are stored in few bits, and on those that the host keeps off the device."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from comfyui_process.graph import Graph
from comfyui_process.server import Server

from . import graphs
from .learning import WIDGETS, train


def told(server: Server, name: str, **widgets: Any) -> dict[str, Any]:
    graph = Graph()
    shown = graph.add("PreviewAny", source=graph.add(name, **widgets))
    found: dict[str, Any] = json.loads(server.run(graph).outputs[shown.node]["text"][0])
    return found


@pytest.mark.parametrize("what", ["residual", "lora"])
@pytest.mark.parametrize("stored", ["fp16", "bf16", "fp8"])
def test_gradients_are_those_of_the_same_numbers_in_full(server: Server, stored: str, what: str) -> None:
    found = told(server, "TestStoredGradients", stored=stored, what=what, checkpointing=False)
    assert found["cast"] > 50
    assert found["count"] > 3
    assert found["apart"] < 1e-5
    assert found["kept"] < 1.02  # no copies of the weights


def test_with_checkpointing_too(server: Server) -> None:
    found = told(server, "TestStoredGradients", stored="fp8", what="lora", checkpointing=True)
    assert found["apart"] < 1e-5
    assert found["kept"] < 1.02


@pytest.mark.parametrize(("what", "checkpointing"), [("residual", False), ("lora", False), ("lora", True)])
def test_gradients_through_a_half_unloaded_network(server: Server, lora: Path, what: str, checkpointing: bool) -> None:
    found = told(server, "TestOffloadedGradients", what=what, lora="test.safetensors", checkpointing=checkpointing)
    assert found["cast"] > 20
    assert found["whole"] == 0
    assert found["lora"] > 0.01  # patches of weights that are not on the device act too
    assert found["apart"] < 1e-4
    assert found["kept"] < 1.02


@pytest.mark.parametrize(("text", "stay"), [(False, ["model"]), (True, ["clip", "model"])])
def test_what_is_not_trained_is_unloaded_before_the_first_step(server: Server, text: bool, stay: list[str]) -> None:
    found = told(server, "TestLoadedWhileTraining", text=text)
    assert found == {"before": ["clip", "model", "other"], "during": stay, "ordinary": True}


def test_previews_draw_with_the_network_that_is_trained_on(server: Server, photos: list[str]) -> None:
    graph = Graph()
    _, clip, vae = graphs.load(graph)
    images = graphs.images(graph, photos)
    given = {**WIDGETS, "model": graph.add("TestDynamic"), "clip": clip, "vae": vae, "images": images}
    trained = graph.add("InfusionTrain", **{**given, "steps": 2, "preview_every": 1, "seed": 92})
    graph.add("PreviewImage", images=trained[4])
    assert server.run(graph).previews >= 2


def test_the_node_says_what_training_takes(server: Server, photos: list[str]) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos, steps=1, seed=91)[1])
    server.run(graph)
    assert re.search(
        r"Infusion: training takes about 0\.\d\d GB of memory: .* a step of batch 2", server.log.read_text()
    )
