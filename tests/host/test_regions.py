"""Words in the prompts of regions, which other nodes bring to cross-attention as rows of their own; and tiles."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server

from . import graphs
from .test_encoders import reference

WITH, WITHOUT = "a big circle at left on pink", "a big square at left on pink"
CASES = {  # texts of the picture and of the region, and where "circle" stands in each
    "word in the region": (WITHOUT, "a small circle at right", "", "3"),
    "word in the base prompt": (WITH, "a small square at right", "3", ""),
    "word in both": (WITH, "a small circle at right", "3", "3"),
    "region of two chunks": (WITHOUT, "gray " * 80 + WITH, "", "85"),
}


def coupled(
    server: Server, way: str, kind: str, base: str, region: str, positions: tuple[str, str] = ("", ""),
    strength: float = 1.0, name: str = "round", batch: int = 1, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """A picture of two halves, by a model patch in front of or behind Infusion's, or by a hook."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    patched, infused = graphs.patch(graph, model, clip, [name], **options) if way == "infusion" else (model, clip)
    own, other = graphs.encode(graph, infused, base), graphs.encode(graph, infused, region)
    if kind == "model before":
        model = graph.add("TestCoupleModel", model=model, region=other, strength=strength)
        if way == "infusion":
            model, _ = graphs.patch(graph, model, infused, [name], **options)
    elif kind == "model after":
        model = graph.add("TestCoupleModel", model=patched, region=other, strength=strength)
    else:
        own, model = graph.add("TestCoupleHook", conditioning=own, region=other, strength=strength), patched
    if way == "reference":
        plain = graphs.encode(graph, clip, base)
        model = reference(graph, server, model, plain, positions[0], region=other, region_positions=positions[1])
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
    model = graph.add("TestRowLog", model=model, name="coupled")
    samples = graphs.sample(graph, model, own, graphs.encode(graph, infused, ""), latent=latent)
    return graphs.drawn(server, graph, samples, "coupled")


KINDS = ("model before", "model after", "hook")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_words_of_regions(server: Server, concepts: Any, kind: str, case: str) -> None:
    base, region, *positions = CASES[case]
    ours = coupled(server, "infusion", kind, base, region)
    by_hand = coupled(server, "reference", kind, base, region, tuple(positions))
    assert graphs.close(ours, by_hand) < 2e-3
    assert graphs.close(by_hand, coupled(server, "neither", kind, base, region)) > 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"base_latent": "own"}])
def test_regions_without_the_word_are_bit_identical_at_the_same_cost(server: Server, concepts: Any, kind, options):
    texts = WITHOUT, "a small triangle at right"
    ours = coupled(server, "infusion", kind, *texts, **options)
    rows = (server.output / "coupled.json").read_text()
    assert torch.equal(ours, coupled(server, "neither", kind, *texts))
    assert rows == (server.output / "coupled.json").read_text()


def test_a_region_that_is_scaled(server: Server, concepts: Any) -> None:
    base, region, *_ = CASES["word in the region"]
    ours, neither = (coupled(server, way, "hook", base, region, strength=0.7) for way in ("infusion", "neither"))
    assert graphs.close(ours, neither) > 0.02


@pytest.mark.parametrize("case", ["word in the region", "word in both"])
def test_base_latent_own(server: Server, concepts: Any, case: str) -> None:
    """Without replaced maps both base latents are one; with them the region's own base run supplies them."""
    base, region, *_ = CASES[case]
    shared, own = (coupled(server, "infusion", "hook", base, region, base_latent=b) for b in ("shared", "own"))
    assert graphs.close(own, shared) > 0.005
    free = [coupled(server, "infusion", "hook", base, region, base_latent=b, maps_end=0.0) for b in ("shared", "own")]
    assert graphs.close(*free) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["round", "valued"])
def test_a_region_with_the_pictures_own_text_changes_nothing(server: Server, concepts: Any, kind: str, name: str):
    """Both halves read the same, so the picture is that without regions."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, [name])
    text, empty = graphs.encode(graph, clip, WITH), graphs.encode(graph, clip, "")
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    whole = graphs.drawn(server, graph, graphs.sample(graph, model, text, empty, latent=latent), "whole")
    assert graphs.close(coupled(server, "infusion", kind, WITH, WITH, name=name, batch=2), whole) < 2e-3


def test_hooks_without_patches_bring_no_texts(server: Server, concepts: Any) -> None:
    """Nothing has to be found out, so no forward is run for it; nodes that draw noise in a forward would notice."""
    graph = Graph()
    model, clip = graphs.patch(graph, *graphs.load(graph)[:2], ["round"], maps_end=0.0)
    model = graph.add("TestRowLog", model=model, name="hooked")
    text = graph.add("TestHookWithoutPatches", conditioning=graphs.encode(graph, clip, WITH))
    graphs.drawn(server, graph, graphs.sample(graph, model, text, graphs.encode(graph, clip, "")), "hooked")
    assert sum(json.loads((server.output / "hooked.json").read_text())) == 8


def tiled(server: Server, way: str, at_once: int, batch: int, prompt: str = WITH, **options: Any) -> torch.Tensor:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    text = graphs.encode(graph, clip, prompt)
    if way == "infusion":
        model, clip = graphs.patch(graph, model, clip, ["round"], **options)
    if way == "reference":
        model = reference(graph, server, model, text, "3", tile=8)
    else:
        model = graph.add("TestTiles", model=model, tile=8, at_once=at_once)
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
    text, empty = graphs.encode(graph, clip, prompt), graphs.encode(graph, clip, "")
    return graphs.drawn(server, graph, graphs.sample(graph, model, text, empty, latent=latent), "tiled")


@pytest.mark.parametrize(("at_once", "batch"), [(1, 1), (3, 1), (4, 2)])
def test_several_tiles_at_once(server: Server, concepts: Any, at_once: int, batch: int) -> None:
    ours, by_hand = tiled(server, "infusion", at_once, batch), tiled(server, "reference", at_once, batch)
    assert graphs.close(ours, by_hand) < 2e-3
    assert graphs.close(by_hand, tiled(server, "neither", at_once, batch)) > 0.02


def test_tiles_whose_base_rows_run_first(server: Server, concepts: Any) -> None:
    """A pass of its own, each tile with the maps of its own base rows."""
    graphs_of = [tiled(server, "infusion", n, 1, base_latent="own", maps_end=1.0) for n in (1, 3)]
    assert graphs.close(*graphs_of) < 1e-4
    assert graphs.close(graphs_of[0], tiled(server, "infusion", 1, 1)) > 0.005


def test_tiles_without_the_word_are_bit_identical(server: Server, concepts: Any) -> None:
    assert torch.equal(*(tiled(server, way, 3, 2, WITHOUT) for way in ("infusion", "neither")))


def test_rows_that_are_mixed_are_refused_by_name(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"])
    model = graph.add("TestMixedRows", model=model)
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, WITH), graphs.encode(graph, clip, ""))
    with pytest.raises(PromptError, match=r"mix_rows.* mixes the rows of cross-attention.* leave it out"):
        graphs.drawn(server, graph, samples, "mixed")
