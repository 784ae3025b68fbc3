"""A concept that acts on nothing is said, once a run, with the reason; one that is switched off is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server

from . import graphs

WITH, WITHOUT = "a big circle at left on pink", "a big square at left on pink"
Sampled = Callable[[Graph, Output, Output, Output], Output]


def warnings(server: Server, encode: Callable[[Graph, Output, Output], Output], strength: float = 1.0, runs: int = 1,
             names: tuple[str, ...] = ("round",), **options: Any) -> list[dict[str, str]]:  # fmt: skip
    """What the page is told in an execution; `encode` is given the plain and the patched CLIP."""
    graph = Graph()
    model, plain, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, plain, list(names), strength, **options)
    text, empty = encode(graph, plain, clip), graphs.encode(graph, plain, "")
    for seed in range(runs):
        graphs.keep(graph, graphs.sample(graph, model, text, empty, seed=100 + seed, steps=2), "unused")
    return [m["data"] for m in server.run(graph).messages if m["type"] == "infusion.warning"]


def without(graph: Graph, plain: Output, clip: Output) -> Output:
    return graphs.encode(graph, clip, WITHOUT)


def with_word(graph: Graph, plain: Output, clip: Output) -> Output:
    return graphs.encode(graph, clip, WITH)


def by_the_plain_clip(graph: Graph, plain: Output, clip: Output) -> Output:
    return graphs.encode(graph, plain, WITH)


def changed(graph: Graph, plain: Output, clip: Output) -> Output:
    return graph.add("TestEncodeByHand", clip=clip, text=WITH, way="noise")


REASONS = {
    without: "no prompt of this sampler that was encoded with this node's CLIP says 'circle' or <round>",
    by_the_plain_clip: "connect the CLIP output of Infusion Attention Patch",
    changed: "a node between the text encoder and the sampler changed the text",
}


@pytest.mark.parametrize("encode", REASONS)
def test_the_page_is_told_why(server: Server, concepts: Any, encode: Any) -> None:
    reason = REASONS[encode]
    (warning,) = warnings(server, encode)
    assert "'round' acted on nothing" in warning["text"]
    assert reason in warning["text"]
    assert warning["node"].isdigit()


def test_a_sampler_behind_one_whose_prompt_says_the_word(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, plain, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, plain, ["round"])
    empty = graphs.encode(graph, plain, "")
    first = graphs.sample(graph, model, graphs.encode(graph, clip, WITH), empty, steps=2)
    second = graphs.sample(graph, model, graphs.encode(graph, clip, WITHOUT), empty, latent=first, steps=2)
    graphs.keep(graph, second, "unused")
    (warning,) = [m["data"] for m in server.run(graph).messages if m["type"] == "infusion.warning"]
    assert REASONS[without] in warning["text"]


def test_once_an_execution(server: Server, concepts: Any) -> None:
    assert len(warnings(server, without, runs=3)) == 1


def test_only_the_concept_that_did_nothing(server: Server, concepts: Any) -> None:
    (warning,) = warnings(server, with_word, names=("round", "corner"))
    assert "'corner'" in warning["text"]


@pytest.mark.parametrize("options", [{}, {"strength": 0.0}, {"start": 0.4, "end": 0.45}])
def test_nothing_is_said_of_what_acts_or_is_switched_off(server: Server, concepts: Any, options: Any) -> None:
    assert warnings(server, with_word, **options) == []
    if "strength" in options:
        assert warnings(server, without, **options) == []
