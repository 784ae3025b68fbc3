"""A model that guides itself draws what it draws alone, whatever else is in the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server

from . import graphs
from .test_blend import BLEND, PROMPT, loras, pair

__all__ = ["loras"]

Texts = tuple[Output, Output]


def with_area(graph: Graph, positive: Output, negative: Output) -> Texts:
    """The host copies a positive with an area into the other list."""
    area = {"width": 64, "height": 128, "x": 0, "y": 0, "strength": 1.0}
    left = graph.add("ConditioningSetArea", conditioning=positive, **area)
    return graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=left), negative


def with_range(graph: Graph, positive: Output, negative: Output) -> Texts:
    """The prompt for the first half of the run, twice as long beside it."""
    first = graph.add("ConditioningSetTimestepRange", conditioning=positive, start=0.0, end=0.5)
    return graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=first), negative


def with_control(graph: Graph, positive: Output, negative: Output) -> Texts:
    image = graph.add("LoadImage", image="picture-0.png")[0]
    net = graph.add("TestControl")
    return graph.add("ControlNetApply", conditioning=positive, control_net=net, image=image, strength=1.0), negative


TEXTS = {"plain": lambda graph, *texts: texts, "area": with_area, "range": with_range, "control": with_control}


def guided_by_itself(
    server: Server, mode: str, texts: Any = TEXTS["plain"], make: Any = None, concept: bool = False
) -> tuple[torch.Tensor, ...]:
    """Guided by its own weights, and alone: with an early conditioning of its own the node does not refuse it."""
    pictures = []
    for blended in (True, False):
        graph = Graph()
        _, (model, clip) = pair(graph)
        early = model
        if concept:
            model, clip = graphs.patch(graph, model, clip, ["nothing"], base_latent="own")
        told = texts(graph, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
        if blended:
            own = {"early_positive": told[0], "mode": mode, "alpha": 5.0 if mode == "gradient" else 1.0}
            model = graph.add("DreamBlendGuidance", model=model, early_model=early, **{**BLEND, **own})
        options = make(graph) if make else {}
        pictures.append(graphs.drawn(server, graph, graphs.sample(graph, model, *told, **options), "itself"))
    return tuple(pictures)


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
@pytest.mark.parametrize("texts", TEXTS)
def test_a_model_that_guides_itself_changes_nothing(
    server: Server, loras: Any, pictures: Any, mode: str, texts: str
) -> None:
    apart = graphs.close(*guided_by_itself(server, mode, TEXTS[texts]))
    assert apart == 0 if mode == "gradient" else apart < 1e-4


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
def test_every_picture_has_its_own_mask_in_both_runs(server: Server, loras: Any, mode: str) -> None:
    def masked(graph: Graph) -> dict[str, Any]:
        latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        masks = [graph.add("SolidMask", value=value, width=128, height=128) for value in (1.0, 0.4)]
        both = graph.add("MaskToImage", mask=masks[0]), graph.add("MaskToImage", mask=masks[1])
        batch = graph.add("ImageBatch", image1=both[0], image2=both[1])
        mask = graph.add("ImageToMask", image=batch, channel="red")
        return {"latent": graph.add("SetLatentNoiseMask", samples=latent, mask=mask)}

    apart = graphs.close(*guided_by_itself(server, mode, make=masked))
    assert apart == 0 if mode == "gradient" else apart < 1e-4


def test_both_runs_of_a_concept_with_its_own_base_latent_begin_anew(server: Server, loras: Any, concepts: Any) -> None:
    """A concept of zeros: nothing may be left of the first of its two sampling runs."""
    assert graphs.close(*guided_by_itself(server, "gradient", concept=True)) < 1e-3
    drawn = []
    for concept in (True, False):
        graph = Graph()
        (early, early_clip), (model, clip) = pair(graph)
        if concept:
            model, clip = graphs.patch(graph, model, clip, ["nothing"], base_latent="own")
        own = {"early_positive": graphs.encode(graph, early_clip, PROMPT), "alpha": 0.05}
        model = graph.add("DreamBlendGuidance", model=model, early_model=early, **{**BLEND, **own})
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        drawn.append(graphs.drawn(server, graph, graphs.sample(graph, model, *texts), "twice"))
    assert graphs.close(*drawn) < 0.05


def test_a_step_cache_leaves_guidance_at_every_step(server: Server, loras: Any) -> None:
    """Predictions of the early model that a cache left out are replaced by those beside them."""
    options = {"reuse_threshold": 0.5, "start_percent": 0.1, "end_percent": 0.9, "verbose": False}

    def drawn(who: str | None, mode: str) -> torch.Tensor:
        graph = Graph()
        (early, early_clip), (model, clip) = pair(graph)
        if who == "early":
            early = graph.add("EasyCache", model=early, **options)
        if who == "late":
            model = graph.add("EasyCache", model=model, **options)
        own = {"early_positive": graphs.encode(graph, early_clip, PROMPT), "mode": mode, "alpha": 0.3}
        model = graph.add("DreamBlendGuidance", model=model, early_model=early, **{**BLEND, **own})
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        return graphs.drawn(server, graph, graphs.sample(graph, model, *texts, steps=8), "cached")

    for mode in ("gradient", "replacement"):
        plain = drawn(None, mode)
        for who in ("early", "late"):
            cached = drawn(who, mode)
            assert cached.isfinite().all()
            assert graphs.close(cached, plain) < 4
