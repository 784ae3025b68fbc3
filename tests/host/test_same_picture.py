"""Both hosts, one picture: same weights, same seed, same concept file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import Sampler, SampleSettings, Window
from infusion_core.residual_file import load_concept

from . import graphs
from .comfyui import Graph, Server

STEPS, GUIDANCE, SEED = 5, 3.0, 11
CASES = {
    "one": ("a big circle at left on pink", ["round"]),
    "two": ("a big circle at left and a small square at right on teal", ["round", "corner"]),
    "three": ("a big circle at left and a small square at right and a small triangle at top",
              ["round", "corner", "peak"]),
    "word twice": ("a circle at left and a circle at right", ["round"]),
    "layer": ("a big circle at left on pink", ["layered"]),
    "value": ("a big circle at left on pink", ["valued"]),
    "bins": ("a big circle at left on pink", ["binned"]),
}  # fmt: skip


def embedded(server: Server, prompt: str, names: list[str], **options: Any) -> torch.Tensor:
    """The latent that the embedded host draws."""
    model = load_model("tinyworld")
    loaded = {n: load_concept(server.base / "models" / "infusion" / f"{n}.safetensors") for n in names}
    text = model.text.encode(prompt, {n: c.word for n, c in loaded.items()})
    settings = SampleSettings(STEPS, GUIDANCE, **options)
    concepts = [(c, 1.0) for c in loaded.values()]
    sampler = Sampler(model.denoiser, model.scheduler, text, model.text.encode("").conditioning, concepts, settings)
    *_, last = sampler.run(model.noise(1, SEED))
    return last.latents


def hosted(server: Server, prompt: str, names: list[str], **options: Any) -> torch.Tensor:
    """The latent that ComfyUI draws at the same noise levels, in the embedded host's units."""
    scheduler = load_model("tinyworld").scheduler
    scheduler.set_timesteps(STEPS)
    alphas = scheduler.alphas_cumprod[[*scheduler.timesteps.tolist(), 0]].double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, names, **options)
    drawn = graph.add(
        "SamplerCustom", model=model, add_noise=True, noise_seed=SEED, cfg=GUIDANCE,
        positive=graphs.encode(graph, clip, prompt), negative=graphs.encode(graph, clip, ""),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("TestSigmas", values=" ".join(f"{s:.10g}" for s in sigmas.tolist())),
        latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=1),
    )  # fmt: skip
    return graphs.drawn(server, graph, drawn, "same") / (1 + sigmas[-1] ** 2).sqrt().float()


@pytest.mark.parametrize("case", CASES)
def test_shared(server: Server, concepts: Any, case: str) -> None:
    prompt, names = CASES[case]
    ours, theirs = hosted(server, prompt, names), embedded(server, prompt, names)
    assert graphs.close(ours, theirs) < 2e-3
    assert graphs.close(embedded(server, prompt, []), theirs) > 0.1  # the concepts do something


@pytest.mark.parametrize("case", ["one", "two", "value"])
def test_own(server: Server, concepts: Any, case: str) -> None:
    prompt, names = CASES[case]
    theirs = embedded(server, prompt, names, base_latent="own")
    assert graphs.close(hosted(server, prompt, names, base_latent="own"), theirs) < 2e-3
    assert graphs.close(embedded(server, prompt, names), theirs) > 0.05  # and is not "shared"


def test_without_map_replacement(server: Server, concepts: Any) -> None:
    prompt, names = CASES["two"]
    theirs = embedded(server, prompt, names, replacement=Window(0, 0))
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
