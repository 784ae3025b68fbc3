"""ComfyUI's denoiser obeys the whole plan, as the embedded one does."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from tests import conformance

from . import graphs


@pytest.fixture(scope="module")
def observed(server: Server) -> conformance.Tensors:
    """What the host gives, computed in its own process."""
    given = conformance.inputs(load_model("tinyworld"))
    save_file(given, server.base / "input" / "conformance.safetensors")
    graph = Graph()
    done = graph.add("TestConformance", model=graphs.load(graph)[0], name="conformance")
    graph.add("PreviewAny", source=done)
    server.run(graph)
    return load_file(server.output / "conformance.safetensors")


def test_comfyuis_denoiser_conforms(observed: conformance.Tensors) -> None:
    model = load_model("tinyworld")
    conformance.assert_conforms(observed, conformance.expected(model, conformance.inputs(model)))
