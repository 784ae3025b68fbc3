"""Both hosts, one picture: same weights, same seed, same concept file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.schedule import NEVER

from . import graphs
from .both import embedded, hosted

CASES = {
    "one": ("a big circle at left on pink", ["round"]),
    "two": ("a big circle at left and a small square at right on teal", ["round", "corner"]),
    "three": ("a big circle at left and a small square at right and a small triangle at top",
              ["round", "corner", "peak"]),
    "word twice": ("a circle at left and a circle at right", ["round"]),
    "layer": ("a big circle at left on pink", ["layered"]),
    "value": ("a big circle at left on pink", ["valued"]),
    "bins": ("a big circle at left on pink", ["binned"]),
    "parts": ("a big circle at left and a circle at right and a small square at top", ["parted", "corner"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_shared(server: Server, concepts: Any, case: str) -> None:
    prompt, names = CASES[case]
    ours, theirs = hosted(server, prompt, names), embedded(server, prompt, names)
    assert graphs.close(ours, theirs) < 2e-3
    assert graphs.close(embedded(server, prompt, []), theirs) > 0.1  # the concepts do something


@pytest.mark.parametrize("case", ["one", "two", "value", "parts"])
def test_own(server: Server, concepts: Any, case: str) -> None:
    prompt, names = CASES[case]
    theirs = embedded(server, prompt, names, base_latent="own")
    assert graphs.close(hosted(server, prompt, names, base_latent="own"), theirs) < 2e-3
    assert graphs.close(embedded(server, prompt, names), theirs) > 0.05  # and is not "shared"


def test_without_map_replacement(server: Server, concepts: Any) -> None:
    prompt, names = CASES["two"]
    theirs = embedded(server, prompt, names, replacement=NEVER)
    assert graphs.close(hosted(server, prompt, names, maps_end=0.0), theirs) < 2e-3


def test_the_pictures_of_both_hosts_are_decoded_alike(server: Server, concepts: Any) -> None:
    model = load_model("tinyworld")
    latent = embedded(server, *CASES["one"])
    (expected,) = model.decode(latent)
    from safetensors.torch import save_file

    save_file({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])},
              server.base / "input" / "one.latent")  # fmt: skip
    graph = Graph()
    _, _, vae = graphs.load(graph)
    loaded = graph.add("LoadLatent", latent="one.latent")
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=loaded, vae=vae), filename_prefix="decoded")
    server.run(graph)
    import numpy as np
    from PIL import Image

    with Image.open(sorted(server.output.glob("decoded_*.png"))[-1]) as picture:
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
