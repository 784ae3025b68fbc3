"""Several patches on one model: two of Infusion's, and the layout `value` before and behind other replacers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server

from . import graphs

PROMPT = "a big circle at left on pink"


def test_two_patches_in_a_chain_are_one_patch_with_two_concepts(server: Server, concepts: Any) -> None:
    prompt = "a big circle at left and a small square at right"

    def drawn(chained: bool) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        if chained:
            model, clip = graphs.patch(graph, *graphs.patch(graph, model, clip, ["round"]), names=["corner"])
        else:
            model, clip = graphs.patch(graph, model, clip, ["round", "corner"])
        empty = graphs.encode(graph, clip, "")
        return graphs.drawn(
            server, graph, graphs.sample(graph, model, graphs.encode(graph, clip, prompt), empty), "chain"
        )

    assert graphs.close(drawn(True), drawn(False)) < 1e-5


def test_patches_in_a_chain_must_agree(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"])
    model, clip = graphs.patch(graph, model, clip, ["corner"], base_latent="own")
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
    with pytest.raises(PromptError, match="must agree in base latent;"):
        graphs.drawn(server, graph, samples, "disagree")


def test_value_layout_behind_a_replacer_chains(server: Server, concepts: Any) -> None:
    """With strength 0 the picture is the replacer's own; with the concept it differs."""

    def drawn(strength: float | None) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        model = graph.add("TestReplacer", model=model)
        if strength is not None:
            model, clip = graphs.patch(graph, model, clip, ["valued"], strength)
        samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
        return graphs.drawn(server, graph, samples, "chain-value")

    alone = drawn(None)
    assert torch.equal(drawn(0.0), alone)
    assert graphs.close(drawn(1.0), alone) > 0.05


def test_parts_act_on_either_side_of_a_replacer(server: Server, concepts: Any) -> None:
    def drawn(*nodes: str) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        for node in nodes:
            if node == "patch":
                model, clip = graphs.patch(graph, model, clip, ["parted"])
            else:
                model = graph.add("TestReplacer", model=model)
        samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
        return graphs.drawn(server, graph, samples, "chain-parts")

    behind = drawn("replacer", "patch")
    assert torch.equal(drawn("patch", "replacer"), behind)
    assert graphs.close(behind, drawn("replacer")) > 0.05
    assert graphs.close(behind, drawn("patch")) > 0.05


def test_value_layout_before_a_replacer_is_refused_by_name(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["valued"])
    model = graph.add("TestReplacer", model=model)
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
    with pytest.raises(PromptError) as refused:
        graphs.drawn(server, graph, samples, "refused")
    assert re.search(r"others\.\w+ replaced cross-attention .* put Infusion Attention Patch after", str(refused.value))
