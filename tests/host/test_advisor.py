"""Checkpoint Advisor in the real host."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.advisor import BASE

from . import graphs
from .test_blend import loras
from .test_similarity import eyes

__all__ = ["eyes", "loras"]

PROMPTS = "a big {} at the left on pink\na small {} on teal"
WIDGETS = {"epochs": "early.safetensors\nlate.safetensors", "subject": "circle", "prompts": PROMPTS, "size": 128,
           "count": 1, "steps": 3, "cfg": 3.0, "seed": 5}  # fmt: skip


def advised(server: Server, graph: Graph, **options: Any) -> tuple[str, list[str]]:
    """The report, and what is suggested: late, early and alpha."""
    model, clip, vae = graphs.load(graph)
    node = graph.add("CheckpointAdvisor", model=model, clip=clip, vae=vae, **{**WIDGETS, **options})
    shown = [graph.add("PreviewAny", source=node[i]) for i in (2, 3, 4, 5)]
    graph.add("SaveImage", images=node[0], filename_prefix="advisor-grid")
    graph.add("SaveImage", images=node[1], filename_prefix="advisor-curve")
    ran = server.run(graph)
    report, *advice = (ran.outputs[one.node]["text"][0] for one in shown)
    return report, advice


@pytest.mark.parametrize(
    "prompts", [PROMPTS, PROMPTS.replace("on pink", "on {pink")]
)  # a prompt may hold braces of its own
def test_without_judges_every_epoch_is_drawn_and_collapse_measured(server: Server, loras: Any, prompts: str) -> None:
    report, (late, early, alpha) = advised(server, Graph(), prompts=prompts)
    rows = re.findall(r"likeness (\S+), prompt (\S+), collapse (\S+): (.+)", report)
    assert [row[3] for row in rows] == [BASE, "early.safetensors", "late.safetensors"]
    assert all(row[:2] == ("-", "-") for row in rows)
    assert rows[0][2] == "0.000"
    assert late == "late.safetensors"
    assert (early, float(alpha)) in (("", 0.0), (BASE, 0.02))
    assert f"draw with {late}" in report
    for name in ("grid", "curve"):
        with Image.open(sorted(server.output.glob(f"advisor-{name}_*.png"))[-1]) as picture:
            assert min(picture.size) > 250


def test_its_pictures_are_the_samplers(server: Server, loras: Any) -> None:
    """A cell of the grid against core nodes that draw the same."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    late = graph.add("LoraLoader", model=model, clip=clip, lora_name="late.safetensors", **strengths)
    texts = graphs.encode(graph, late[1], "a small circle on teal"), graphs.encode(graph, late[1], "")
    how = {"sampler_name": "dpmpp_2m", "scheduler": "karras", "steps": 3, "seed": 5}
    drawn = graph.add("VAEDecode", samples=graphs.sample(graph, late[0], *texts, **how), vae=vae)
    graph.add("SaveImage", images=drawn, filename_prefix="advisor-one")
    server.run(graph)
    advised(server, Graph())
    with Image.open(sorted(server.output.glob("advisor-one_*.png"))[-1]) as one:
        wanted = one.convert("RGB")
    with Image.open(sorted(server.output.glob("advisor-grid_*.png"))[-1]) as grid:
        width, height = grid.size
        cell = grid.convert("RGB").crop((width - 6 - 128, height - 6 - 128, width - 6, height - 6))
    apart = np.asarray(cell, dtype=int) - np.asarray(wanted, dtype=int)  # last row, last column
    assert np.abs(apart).max() <= 1  # one of the two rounds, the other cuts off


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": "late.safetensors"}, "write at least two different LoRA files, a subject and a prompt"),
        ({"epochs": "late.safetensors\nlate.safetensors"}, "at least two different LoRA files"),
        ({"subject": " "}, "a subject and a prompt"),
        ({"prompts": "a dog"}, r"the prompt 'a dog' must hold \{\} once"),
        (
            {"epochs": "late.safetensors\ngone.safetensors"},
            r"models/loras has no \.safetensors file 'gone\.safetensors'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(server: Server, loras: Any, options: Any, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        advised(server, Graph(), **options)


def test_judges_score_and_pairs_are_tried(server: Server, loras: Any, pictures: Any, eyes: Any) -> None:
    graph = Graph()
    photos = graphs.images(graph, ["picture-0.png", "picture-1.png"])
    judges = {
        "clip_vision": graph.add("TestVision", name="vision-1024"),
        "score_clip": graph.add("TestSmall", kind="sd2")[1],
    }
    report, (late, early, alpha) = advised(server, graph, photos=photos, **judges)
    rows = re.findall(r"likeness (\S+), prompt (\S+), collapse (\S+): (.+)", report)
    assert len(rows) in (6, 9)
    assert all(-1 <= float(value) <= 1 for row in rows for value in row[:2])
    assert [row[2] for row in rows[3:]] == ["-"] * (len(rows) - 3)
    assert any(f"guided by {BASE}, alpha 0.02" in row[3] for row in rows)
    assert late in ("early.safetensors", "late.safetensors")
    assert early in ("", BASE, "early.safetensors", "late.safetensors")
    assert 0 <= float(alpha) <= 0.04
