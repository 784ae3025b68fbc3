"""Pieces of workflows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from comfyui_process.graph import Graph, Output, Ran
from comfyui_process.server import Server

PATCH = {"base_latent": "shared", "start": 0.0, "end": 1.0, "maps_start": 0.0, "maps_end": 1.0}


def load(graph: Graph) -> tuple[Output, Output, Output]:
    """TinyWorld's MODEL, CLIP and VAE."""
    world = graph.add("TestTinyWorld")
    return world[0], world[1], world[2]


def stack(graph: Graph, names: Sequence[str], strength: float = 1.0) -> Output:
    """Loaders chained."""
    concept: Output | None = None
    for name in names:
        previous = {} if concept is None else {"previous": concept}
        concept = graph.add("InfusionLoadConcept", concept_name=f"{name}.safetensors", strength=strength, **previous)
    assert concept is not None
    return concept


def patch(graph: Graph, model: Output, clip: Output, names: Sequence[str], strength: float = 1.0, **options: Any):
    """MODEL and CLIP with concepts."""
    concept = stack(graph, names, strength)
    patched = graph.add("InfusionAttentionPatch", model=model, clip=clip, concept=concept, **{**PATCH, **options})
    return patched[0], patched[1]


def encode(graph: Graph, clip: Output, text: str) -> Output:
    return graph.add("CLIPTextEncode", clip=clip, text=text)


def sample(graph: Graph, model: Output, positive: Output, negative: Output, **options: Any) -> Output:
    """KSampler on an empty TinyWorld latent; `latent` and every widget may be given."""
    latent = options.pop("latent", None) or graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    widgets = {"seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **{**widgets, **options}
    )


def keep(graph: Graph, samples: Output, name: str) -> None:
    graph.add("SaveLatent", samples=samples, filename_prefix=name)


def kept(server: Server, name: str) -> Tensor:
    """The latest latent saved under a name."""
    files = sorted(server.output.glob(f"{name}_*.latent"))
    assert files, f"no latent {name} in {[p.name for p in server.output.iterdir()]}"
    return load_file(files[-1])["latent_tensor"]


def drawn(server: Server, graph: Graph, samples: Output, name: str) -> Tensor:
    """Run a graph and return the latent at one place of it."""
    keep(graph, samples, name)
    server.run(graph)
    return kept(server, name)


def images(graph: Graph, names: Sequence[str]) -> Output:
    """Pictures of the input folder as one batch."""
    batch = graph.add("LoadImage", image=names[0])[0]
    for name in names[1:]:
        batch = graph.add("ImageBatch", image1=batch, image2=graph.add("LoadImage", image=name)[0])
    return batch


def floats(server: Server, graph: Graph, outputs: Sequence[Output]) -> tuple[list[float], Ran]:
    """Run a graph and return FLOAT outputs."""
    shown = [graph.add("PreviewAny", source=output) for output in outputs]
    ran = server.run(graph)
    return [float(ran.outputs[s.node]["text"][0]) for s in shown], ran


def close(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the spread of `b`."""
    return float((a - b).abs().max() / b.std())
