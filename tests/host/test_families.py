"""SD2's v-prediction and SDXL's two encoders, by their structure; models that cannot be patched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.sites import Site

from . import graphs
from .test_blend import BLEND

PROMPT = "a photo of a cat on a roof"
CAT = "5"
BASES = {
    "sd2": Base("sd2", 1024, "v_prediction", tuple(Site(b, b, 1) for b in ("down.0", "down.1", "mid", "up.0", "up.1"))),
    "sdxl": Base("sdxl", 2048, "epsilon", tuple(Site(b, b, 1) for b in ("down.1", "mid", "up.0"))),
}
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}  # of the text context


def concept(kind: str) -> ConceptResidual:
    blank, generator = zero_residual(BASES[kind], "cat"), torch.Generator().manual_seed(1)
    drawn = {k: torch.randn(t.shape, generator=generator) * 20 for k, t in blank.tensors.items()}
    return ConceptResidual("cat", "block", drawn, blank.architecture, blank.context_width, blank.prediction)


def small(graph: Graph, kind: str) -> tuple[Output, Output]:
    loaded = graph.add("TestSmall", kind=kind)
    return loaded[0], loaded[1]


@pytest.mark.parametrize("kind", BASES)
def test_patch_equals_the_reference(server: Server, kind: str) -> None:
    file = server.base / "models" / "infusion" / f"{kind}-cat.safetensors"
    save_concept(file, concept(kind))
    drawn = {}
    for way in ("infusion", "reference", "neither"):
        graph = Graph()
        model, clip = small(graph, kind)
        if way == "reference":
            text = graphs.encode(graph, clip, PROMPT)
            model = graph.add("TestReference", model=model, file=str(file), positions=CAT, text=text, maps=True)
        if way == "infusion":
            model, clip = graphs.patch(graph, model, clip, [f"{kind}-cat"])
        latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=2)
        samples = graphs.sample(
            graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""), latent=latent
        )
        drawn[way] = graphs.drawn(server, graph, samples, f"{kind}-{way}")
    assert graphs.close(drawn["infusion"], drawn["reference"]) < 2e-3
    assert graphs.close(drawn["neither"], drawn["reference"]) > 0.02


@pytest.mark.parametrize("kind", BASES)
def test_the_trainer_sees_what_the_network_says(server: Server, kind: str) -> None:
    graph = Graph()
    model, clip = small(graph, kind)
    seen = graph.add("TestNetworkOutput", model=model, text=graphs.encode(graph, clip, PROMPT))
    assert graphs.drawn(server, graph, seen, f"{kind}-output").max() < 1e-3


@pytest.mark.parametrize("kind", BASES)
def test_training(server: Server, kind: str) -> None:
    graph = Graph()
    model, clip = small(graph, kind)
    _, _, vae = graphs.load(graph)
    image = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0)
    trained = graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=image, word="teddy bear", steps=2, batch_size=1,
        learning_rate=0.01, layout="layer", bins=2, resolution=64, seed=0, preview_every=0, captions="",
    )  # fmt: skip
    graph.add("InfusionSaveConcept", concept=trained, filename=f"bear-{kind}", storage="fp16")
    server.run(graph)
    use = Graph()
    model, clip = small(use, kind)
    concept = use.add("InfusionLoadConcept", concept_name=f"bear-{kind}.safetensors", strength=1.0)
    patched = use.add("InfusionAttentionPatch", model=model, clip=clip, concept=concept, **graphs.PATCH)
    text = graphs.encode(use, patched[1], "a teddy bear")
    latent = use.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    samples = graphs.sample(use, patched[0], text, graphs.encode(use, patched[1], ""), latent=latent)
    assert graphs.drawn(server, use, samples, f"bear-{kind}").isfinite().all()


def test_a_concept_of_another_base_is_refused(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip = small(graph, "sdxl")
    model, clip = graphs.patch(graph, model, clip, ["round"])
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
    with pytest.raises(PromptError, match="was made for tinyworld2, not sdxl"):
        graphs.drawn(server, graph, samples, "refused")


def test_a_model_without_cross_attention_is_refused_by_name(server: Server, concepts: Any) -> None:
    graph = Graph()
    _, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, graph.add("TestTransformer"), clip, ["round"])
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
    with pytest.raises(PromptError, match="has no UNet with cross-attention"):
        graphs.drawn(server, graph, samples, "refused")


def test_guidance_refuses_a_model_without_cross_attention(server: Server) -> None:
    graph = Graph()
    early, _ = small(graph, "sd1")
    model = graph.add("DreamBlendGuidance", model=graph.add("TestTransformer"), early_model=early, **BLEND)
    graph.add("PreviewAny", source=model)
    with pytest.raises(PromptError, match="BaseModel has no UNet with cross-attention"):
        server.run(graph)


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_a_lora_is_guided_by_the_base_and_by_itself_not_at_all(server: Server, kind: str, mode: str) -> None:
    width, generator = 128 if kind == "sd1" else 64, torch.Generator().manual_seed(1)
    key, state = "diffusion_model.middle_block.1.transformer_blocks.0.attn2", {}
    for part, inputs in (("to_q", width), ("to_k", WIDTHS[kind])):
        state[f"{key}.{part}.lora_up.weight"] = torch.randn(width, 4, generator=generator) * 0.15
        state[f"{key}.{part}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) * 0.15
    save_file(state, server.base / "models" / "loras" / f"{kind}-late.safetensors")
    drawn = {}
    for guide in ("nothing", "base", "itself"):
        graph = Graph()
        model, clip = small(graph, kind)
        late = graph.add("LoraLoaderModelOnly", model=model, lora_name=f"{kind}-late.safetensors", strength_model=1.0)
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        if guide != "nothing":
            early = model if guide == "base" else late
            own = {"mode": mode, "alpha": 1.0, "early_positive": texts[0], "early_negative": texts[1]}
            late = graph.add("DreamBlendGuidance", model=late, early_model=early, **{**BLEND, **own})
        latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=2)
        samples = graphs.sample(graph, late, *texts, latent=latent)
        drawn[guide] = graphs.drawn(server, graph, samples, f"{kind}-{guide}")
    assert drawn["base"].isfinite().all()
    assert graphs.close(drawn["base"], drawn["nothing"]) > 1e-5
    assert graphs.close(drawn["itself"], drawn["nothing"]) < (1e-9 if mode == "gradient" else 1e-4)
