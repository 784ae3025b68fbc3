"""One prompt drawn by both hosts: same weights, same noise levels, same concept files."""

from __future__ import annotations

from typing import Any

import torch

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server
from infusion_core.concepts import LoadedConcept, words_of
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.residual_file import load_concept
from infusion_core.schedule import Window
from infusion_core.streams import BaseLatent

from . import graphs

STEPS, GUIDANCE, SEED = 5, 3.0, 11


def embedded(
    server: Server, prompt: str, names: list[str], steps: int = STEPS, base_latent: BaseLatent = "shared",
    replacement: Window | None = None, model: EmbeddedModel | None = None,
) -> torch.Tensor:  # fmt: skip
    """The latent that the embedded host draws, with TinyWorld unless another model is given."""
    model = model or load_model("tinyworld")
    files = {n: load_concept(server.base / "models" / "infusion" / f"{n}.safetensors") for n in names}
    concepts = [LoadedConcept(name, residual, replacement=replacement) for name, residual in files.items()]
    text = model.text.encode(prompt, words_of(concepts))
    settings = SampleSettings(steps, GUIDANCE, base_latent)
    picture = Picture(text, model.text.encode("").conditioning, concepts)
    sampler = Sampler(model.denoiser, model.scheduler, [picture], settings)
    *_, last = sampler.run(model.noise(1, SEED))
    return last.latents


def hosted(server: Server, prompt: str, names: list[str], steps: int = STEPS, **options: Any) -> torch.Tensor:
    """The latent that ComfyUI draws at the same noise levels, in the embedded host's units."""
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, names, **options)
    return drawn(server, graph, model, clip, prompt, "same", steps)


def drawn(
    server: Server, graph: Graph, model: Output, clip: Output, prompt: str, name: str, steps: int = STEPS
) -> torch.Tensor:
    """What a MODEL of TinyWorld draws from the embedded host's noise and at its noise levels, in its units."""
    scheduler = load_model("tinyworld").scheduler
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod[[*scheduler.timesteps.tolist(), 0]].double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    samples = graph.add(
        "SamplerCustom", model=model, add_noise=True, noise_seed=SEED, cfg=GUIDANCE,
        positive=graphs.encode(graph, clip, prompt), negative=graphs.encode(graph, clip, ""),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("TestSigmas", values=" ".join(f"{s:.10g}" for s in sigmas.tolist())),
        latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=1),
    )  # fmt: skip
    return graphs.drawn(server, graph, samples, name) / (1 + sigmas[-1] ** 2).sqrt().float()
