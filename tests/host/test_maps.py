"""Infusion Inspect Maps: maps computed in the host against maps computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model

from . import graphs

PROMPT = "a big circle at left on pink"


def masks(server: Server, words: str, word: str, concept: str | None = None, inspect_first: bool = True,
          size: int = 0, prompt: str = PROMPT) -> np.ndarray:  # fmt: skip
    """The mask of a word as a picture, one sampling step."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    maps = None
    for what in ("inspect", "patch") if inspect_first else ("patch", "inspect"):
        if what == "inspect":
            seen = graph.add("InfusionInspectMaps", model=model, clip=clip, words=words)
            model, clip, maps = seen[0], seen[1], seen[2]
        elif concept:
            model, clip = graphs.patch(graph, model, clip, [concept])
    empty = graphs.encode(graph, clip, "")
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, prompt), empty, steps=1, seed=2)
    decoded = graph.add("VAEDecode", samples=samples, vae=vae)
    shown = graph.add("InfusionMapImages", maps=maps, images=decoded, word=word, size=size)
    graph.add("SaveImage", images=shown[0], filename_prefix="heat")
    picture = graph.add("MaskToImage", mask=shown[1])
    graph.add("SaveImage", images=picture, filename_prefix="mask")
    server.run(graph)
    with Image.open(sorted(server.output.glob("mask_*.png"))[-1]) as saved:
        return np.asarray(saved.convert("L"), dtype=float) / 255


def by_hand(words: list[int], size: int) -> np.ndarray:
    """Mean map over layers of a size, with probabilities written out, for the same noise; scaled to 0-1."""
    model = load_model("tinyworld")
    unet, text = model.denoiser.unet, model.text.encode(PROMPT).conditioning.context
    found: dict[int, list[torch.Tensor]] = {}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        q = module.to_q(hidden).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        k = module.to_k(text).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        shares = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)[0, ..., words].sum(-1).mean(0)
        edge = int(len(shares) ** 0.5)
        found.setdefault(edge, []).append(shares.reshape(edge, edge))

    handles = [m.register_forward_hook(hook, with_kwargs=True) for n, m in unet.named_modules() if n.endswith("attn2")]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        unet(noise, torch.tensor(999), encoder_hidden_states=text)
    for handle in handles:
        handle.remove()
    mean = torch.stack(found[size]).mean(0)[None, None]
    whole = torch.nn.functional.interpolate(mean, (128, 128), mode="bilinear")[0, 0]
    return ((whole - whole.min()) / (whole.max() - whole.min())).numpy()


@pytest.mark.parametrize("size", [16, 8])
@pytest.mark.parametrize(("word", "positions"), [("circle", [3]), ("pink", [7])])
def test_maps_are_those_computed_by_hand(server: Server, concepts: Any, word: str, positions: list[int], size: int):
    ours = masks(server, "circle, pink", word, size=size)
    assert np.abs(ours - by_hand(positions, size)).max() < 0.02


@pytest.mark.parametrize("inspect_first", [True, False])
def test_the_concept_stream_attends_as_the_base_stream(server: Server, concepts: Any, inspect_first: bool) -> None:
    plain = masks(server, "circle", "circle", size=16)
    infused = masks(server, "circle", "circle", "round", inspect_first, size=16)
    assert np.abs(plain - infused).max() < 0.02


def test_a_word_that_is_not_in_the_prompt_is_named(server: Server, concepts: Any) -> None:
    with pytest.raises(PromptError, match="there is no map of 'triangle'"):
        masks(server, "triangle", "triangle")
    with pytest.raises(PromptError, match="'square' is not watched"):
        masks(server, "circle", "square")


def test_watching_changes_nothing(server: Server, concepts: Any) -> None:
    def drawn(watch: bool) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        model, clip = graphs.patch(graph, model, clip, ["round"])
        if watch:
            seen = graph.add("InfusionInspectMaps", model=model, clip=clip, words="circle")
            model, clip = seen[0], seen[1]
        empty = graphs.encode(graph, clip, "")
        return graphs.drawn(server, graph, graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), empty), "w")

    assert torch.equal(drawn(True), drawn(False))
