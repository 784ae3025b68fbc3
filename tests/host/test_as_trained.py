"""A concept file says whether it was trained with the base's maps, and the patch does as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.residuals import ConceptResidual
from infusion_core.schedule import NEVER

from . import graphs
from .both import embedded, hosted
from .conftest import residual

ONE = "a big circle at left on pink"
TWO = "a big circle at left and a small square at right on teal"
WITHOUT, WITH = [2] * 4, [3] * 4  # rows of each step without and with base rows


@pytest.fixture(scope="module")
def kinds(server: Server, concepts: Any) -> dict[str, ConceptResidual]:
    """Concepts of a circle and a square that were trained with their own maps."""
    made = {"free-circle": residual("circle", 1), "free-square": residual("square", 2)}
    for name, concept in made.items():
        file = server.base / "models" / "infusion" / f"{name}.safetensors"
        save_concept(file, replace(concept, training={"replace_maps": "false"}))
    return made


def drawn(server: Server, names: list[str], prompt: str = ONE, **options: Any) -> tuple[torch.Tensor, list[int]]:
    """The latent, and the rows of every forward."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, names, **options)
    model = graph.add("TestRowLog", model=model, name="kinds")
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, prompt), graphs.encode(graph, clip, ""))
    return graphs.drawn(server, graph, samples, "kinds"), json.loads((server.output / "kinds.json").read_text())


def test_from_the_switch_of_the_trainer_to_the_picture(server: Server) -> None:
    graph = Graph()
    for i, picture in enumerate(training_images(CONCEPTS["ember"])[:1]):
        picture.save(server.base / "input" / f"free-{i}.png")
    model, clip, vae = graphs.load(graph)
    trained = graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, ["free-0.png"]), word="circle",
        steps=12, batch_size=1, learning_rate=0.1, layout="block", bins=1, resolution=128, seed=1, preview_every=0,
        captions="", replace_maps=False,
    )  # fmt: skip
    graph.add("InfusionSaveConcept", concept=trained, filename="freely", storage="fp16")
    server.run(graph)
    assert load_concept(server.output / "infusion" / "freely.safetensors").map_window == NEVER
    asked, off, on = (drawn(server, ["freely"], **how) for how in ({}, *choices("off", "on")))
    assert torch.equal(asked[0], off[0])
    assert asked[1] == off[1] == WITHOUT
    assert on[1] == WITH
    assert graphs.close(on[0], off[0]) > 0.01


def choices(*values: str) -> list[dict[str, str]]:
    return [{"map_replacement": value} for value in values]


def test_a_file_that_does_not_say_replaces(server: Server, concepts: Any) -> None:
    asked, explicit, on, off = (drawn(server, ["round"], **how) for how in ({}, *choices("as trained", "on", "off")))
    assert torch.equal(asked[0], on[0])
    assert torch.equal(explicit[0], on[0])
    assert asked[1] == WITH
    assert off[1] == WITHOUT
    assert graphs.close(on[0], off[0]) > 0.01


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_a_prompt_that_names_both_kinds_replaces(server: Server, kinds: Any, base_latent: Any) -> None:
    """And one that names the free kind alone does not."""
    names = ["round", "free-square"]
    theirs = embedded(server, TWO, names, base_latent=base_latent)
    assert graphs.close(hosted(server, TWO, names, base_latent=base_latent), theirs) < 2e-3
    free = hosted(server, TWO, names, base_latent=base_latent, map_replacement="off")
    assert graphs.close(free, theirs) > 0.05


def test_only_prompts_that_want_base_rows_have_them(server: Server, kinds: Any) -> None:
    names = ["round", "free-square"]
    assert drawn(server, names, TWO)[1] == WITH
    assert drawn(server, names, "a small square at right on teal")[1] == WITHOUT
    assert drawn(server, names, ONE)[1] == WITH
    free = [*WITHOUT]  # the sampler runs once: there are no maps to take from a picture of the base model's
    assert drawn(server, ["free-circle"], ONE, base_latent="own")[1] == free


def test_patches_in_a_chain_need_not_agree(server: Server, kinds: Any) -> None:
    """One after the other, with settings of their own, they are a stack of both kinds."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["round"])
    model, clip = graphs.patch(graph, model, clip, ["corner"], maps_end=0.0)
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, TWO), graphs.encode(graph, clip, ""))
    chained = graphs.drawn(server, graph, samples, "kinds-chain")
    assert graphs.close(chained, drawn(server, ["round", "free-square"], TWO)[0]) < 1e-4


def test_a_share_of_the_run_in_the_file_is_where_base_rows_end(server: Server, concepts: Any) -> None:
    """And the patch may end them sooner, or run them throughout."""
    made = replace(residual("circle", 1), training={"replacement_end": "0.5"})
    save_concept(server.base / "models" / "infusion" / "half-circle.safetensors", made)
    assert drawn(server, ["half-circle"])[1] == [3, 3, 2, 2]
    assert graphs.close(hosted(server, ONE, ["half-circle"]), embedded(server, ONE, ["half-circle"])) < 2e-3
    assert drawn(server, ["half-circle"], maps_end=0.25)[1] == [3, 2, 2, 2]
    assert drawn(server, ["half-circle"], map_replacement="on")[1] == WITH
