"""DreamBlend Guidance in the real host: the embedded host's pictures, every sampler, and what must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.adapters import read_lora, with_lora
from infusion_core.embedded.blend import BlendSampler
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import sampler_for
from infusion_core.lora_file import original_paths
from infusion_core.schedule import Window

from . import graphs
from .both import GUIDANCE, SEED, STEPS, drawn
from .test_samplers import names

PROMPT = "a big circle at left on pink"
BLEND = {"mode": "gradient", "alpha": 0.1, "start": 0.0, "end": 1.0, "every": 1, "gradient_steps": 1,
         "distance": "absolute", "normalise": True}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "gradient": {"alpha": 0.1},
    "raw": {"alpha": 300.0, "normalise": False, "gradient_steps": 2},
    "squared": {"alpha": 0.05, "distance": "squared", "layers": "up"},
    "window": {"alpha": 0.1, "every": 2, "end": 0.7},
    "replacement": {"mode": "replacement", "alpha": 1.0},
    "share": {"mode": "replacement", "alpha": 0.4, "layers": "down.1, mid"},
}


@pytest.fixture(scope="module")
def loras(server: Server) -> dict[str, Path]:
    """Two LoRA files on one base, one in kohya's style, one in ComfyUI's; both change queries, keys, text encoder."""
    folder = server.base / "models" / "loras"
    unet = load_model("tinyworld").denoiser.unet
    layers = [(p, m) for p, m in unet.named_modules() if p.endswith(("attn2.to_q", "attn2.to_k", "attn1.to_q"))]
    text = [f"text_model.encoder.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qv"]
    styles = {
        "early": (lambda path: f"lora_unet_{path}".replace(".", "_"), lambda path: f"lora_te_{path}".replace(".", "_")),
        "late": (
            lambda path: f"diffusion_model.{original_paths(path, 1)[0]}",
            lambda path: f"text_encoders.clip_l.transformer.{path}",
        ),
    }
    for seed, (name, (of_unet, of_text)) in enumerate(styles.items()):
        shapes = {of_unet(path): (layer.out_features, layer.in_features) for path, layer in layers}
        shapes |= {of_text(path): (160, 160) for path in text}
        g, state = torch.Generator().manual_seed(seed), {}
        for key, (width, inputs) in shapes.items():
            state[f"{key}.lora_up.weight"] = torch.randn(width, 4, generator=g) * 0.15
            state[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=g) * 0.15
            state[f"{key}.alpha"] = torch.tensor(3.0)
        save_file(state, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in styles}


def settings_of(case: str) -> BlendSettings:
    told = {**BLEND, **CASES[case]}
    where = tuple(part.strip() for part in told.pop("layers", "").split(",") if part.strip())
    return BlendSettings(window=Window(told.pop("start"), told.pop("end")), where=where, **told)


def embedded(loras: dict[str, Path], settings: BlendSettings | None) -> torch.Tensor:
    """The late LoRA's latent in the embedded host, guided by the early one's."""
    base, sampling = load_model("tinyworld"), SampleSettings(STEPS, GUIDANCE)
    early, late = (with_lora(base, read_lora(loras[name]), name) for name in ("early", "late"))
    samplers = [sampler_for(model, PROMPT, (), sampling) for model in (early, late)]
    run = samplers[1].run if settings is None else BlendSampler(samplers[0], samplers[1], settings).run
    *_, last = run(base.noise(1, SEED))
    return last.latents


def pair(graph: Graph) -> tuple[tuple[Output, Output], tuple[Output, Output]]:
    """MODEL and CLIP with the early LoRA, and with the late one."""
    model, clip, _ = graphs.load(graph)
    early, late = (
        graph.add(
            "LoraLoader", model=model, clip=clip, lora_name=f"{n}.safetensors", strength_model=1.0, strength_clip=1.0
        )
        for n in ("early", "late")
    )
    return (early[0], early[1]), (late[0], late[1])


def guided(graph: Graph, **options: Any) -> tuple[Output, Output]:
    """The late MODEL under guidance, and its CLIP."""
    (early, early_clip), (late, late_clip) = pair(graph)
    own = {
        "early_positive": graphs.encode(graph, early_clip, PROMPT),
        "early_negative": graphs.encode(graph, early_clip, ""),
    }
    model = graph.add("DreamBlendGuidance", model=late, early_model=early, **{**BLEND, **own, **options})
    return model, late_clip


@pytest.mark.parametrize("case", CASES)
def test_both_hosts_draw_one_picture(server: Server, loras: dict[str, Path], case: str) -> None:
    graph = Graph()
    model, clip = guided(graph, **CASES[case])
    ours, theirs = drawn(server, graph, model, clip, PROMPT, "blend"), embedded(loras, settings_of(case))
    apart = graphs.close(embedded(loras, None), theirs)
    # Signs of differences that are nearly 0 are a matter of rounding.
    assert graphs.close(ours, theirs) < (apart / 20 if case not in ("replacement", "share") else min(5e-3, apart / 5))


def test_both_hosts_mean_the_same_by_a_lora_file(server: Server, loras: dict[str, Path]) -> None:
    graph = Graph()
    _, (model, clip) = pair(graph)
    theirs = embedded(loras, None)
    assert graphs.close(drawn(server, graph, model, clip, PROMPT, "late"), theirs) < 2e-3


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
def test_alpha_0_is_the_late_model_bit_for_bit(server: Server, loras: dict[str, Path], mode: str) -> None:
    pictures = []
    for blended in (True, False):
        graph = Graph()
        model, clip = guided(graph, mode=mode, alpha=0.0) if blended else pair(graph)[1]
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        pictures.append(graphs.drawn(server, graph, graphs.sample(graph, model, *texts), "alpha-0"))
    assert torch.equal(*pictures)


def test_models_that_are_guided_already_are_refused(server: Server, loras: Any) -> None:
    for chained in ("model", "early_model"):
        graph = Graph()
        model, clip = guided(graph)
        (early, _), _ = pair(graph)
        models = (
            {"model": model, "early_model": early} if chained == "model" else {"model": early, "early_model": model}
        )
        model = graph.add("DreamBlendGuidance", **models, **BLEND)
        graphs.keep(graph, graphs.sample(graph, model, *[graphs.encode(graph, clip, "") for _ in range(2)]), "chain")
        with pytest.raises(PromptError, match=f"{chained} is guided by another DreamBlend Guidance already; leave one"):
            server.run(graph)


def sampled(server: Server, name: str, **options: Any) -> torch.Tensor:
    """A KSampler on the guided late model, or on one of the two alone (`who`); `blend` are the node's widgets."""
    graph = Graph()
    who, blend = options.pop("who", None), options.pop("blend", {})
    model, clip = guided(graph, **blend) if who is None else pair(graph)[("early", "late").index(who)]
    texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
    make = options.pop("make", None)
    options = {**options, **(make(graph) if make else {})}
    return graphs.drawn(server, graph, graphs.sample(graph, model, *texts, **options), name)


def test_every_sampler_can_be_guided(server: Server, loras: Any) -> None:
    wrong = {}
    for sampler in names(server):
        how = {"sampler_name": sampler, "steps": 3, "scheduler": "karras"}
        late, blended = sampled(server, "late", who="late", **how), sampled(server, "blend", **how)
        if not blended.isfinite().all() or not 1e-3 < graphs.close(blended, late) < 20:
            wrong[sampler] = graphs.close(blended, late)
    assert not wrong


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "heun", "uni_pc", "lcm"])
def test_samplers_with_noise_of_their_own_start_both_runs_alike(server: Server, loras: Any, sampler: str) -> None:
    """Guided at the last step alone, by nothing: the late model's picture, noise and all."""
    how = {"sampler_name": sampler, "steps": 4, "scheduler": "karras"}
    late = sampled(server, "late", who="late", **how)
    blended = sampled(server, "blend", blend={"alpha": 1e-6}, **how)
    assert graphs.close(blended, late) < 5e-3


@pytest.mark.parametrize("mode", ["gradient", "replacement"])
def test_image_to_image_inpainting_and_batches(server: Server, loras: Any, mode: str) -> None:
    blend = {"mode": mode, "alpha": 0.5}
    start = sampled(server, "start", who="late")

    def noised(graph: Graph) -> dict[str, Any]:
        batch = graph.add("RepeatLatentBatch", samples=graph.add("LoadLatent", latent="start.latent"), amount=2)
        mask = graph.add("SolidMask", value=1.0, width=64, height=128)
        left = graph.add(
            "MaskComposite", destination=graph.add("SolidMask", value=0.0, width=128, height=128), source=mask,
            x=0, y=0, operation="add",
        )  # fmt: skip
        return {"latent": graph.add("SetLatentNoiseMask", samples=batch, mask=left), "denoise": 0.8}

    save_file({"latent_tensor": start, "latent_format_version_0": torch.tensor([])},
              server.base / "input" / "start.latent")  # fmt: skip
    late, blended = (sampled(server, "inpaint", make=noised, **w) for w in ({"who": "late"}, {"blend": blend}))
    assert len(blended) == 2
    edge = blended.shape[-1] // 2
    assert graphs.close(blended[..., edge + 1 :], start[..., edge + 1 :].expand_as(blended[..., edge + 1 :])) < 1e-3
    assert graphs.close(blended[..., :edge], late[..., :edge]) > 1e-2


def test_a_concept_on_the_late_model_keeps_working(server: Server, loras: Any, concepts: Any) -> None:
    """With the tiniest guidance it is the concept's picture; with more it still has the concept."""

    def picture(alpha: float | None, mode: str = "gradient", concept: bool = True) -> torch.Tensor:
        graph = Graph()
        (early, early_clip), (model, clip) = pair(graph)
        if concept:
            model, clip = graphs.patch(graph, model, clip, ["round"])
        if alpha is not None:
            own = {"early_positive": graphs.encode(graph, early_clip, PROMPT), "mode": mode, "alpha": alpha}
            model = graph.add("DreamBlendGuidance", model=model, early_model=early, **{**BLEND, **own})
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        return graphs.drawn(server, graph, graphs.sample(graph, model, *texts), "concept")

    alone, bare = picture(None), picture(None, concept=False)
    assert graphs.close(picture(1e-6), alone) < 5e-3 < graphs.close(bare, alone)
    for mode in ("gradient", "replacement"):
        alpha = 0.02 if mode == "gradient" else 1.0
        assert graphs.close(picture(alpha, mode), picture(alpha, mode, concept=False)) > 0.1


def test_what_cannot_be_meant_is_refused(server: Server, loras: Any) -> None:
    def refused(told: str, **options: Any) -> None:
        graph = Graph()
        model, clip = guided(graph, **options)
        texts = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        graphs.keep(graph, graphs.sample(graph, model, *texts), "refused")
        with pytest.raises(PromptError, match=told):
            server.run(graph)

    refused("alpha must be from 0 to 1 in mode replacement, got 2", mode="replacement", alpha=2.0)
    refused("no block or layer 'up.7'; its blocks are: down.0", layers="up.7")
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model = graph.add("DreamBlendGuidance", model=model, early_model=model, **BLEND)
    graphs.keep(graph, graphs.sample(graph, model, *[graphs.encode(graph, clip, "") for _ in range(2)]), "refused")
    with pytest.raises(PromptError, match="have the same weights, so one cannot guide the other; connect an earlier"):
        server.run(graph)
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    other = graph.add("TestSmall", kind="sd1")[0]
    model = graph.add("DreamBlendGuidance", model=model, early_model=other, **BLEND)
    graphs.keep(graph, graphs.sample(graph, model, *[graphs.encode(graph, clip, "") for _ in range(2)]), "refused")
    with pytest.raises(PromptError, match="connect two stages of one training"):
        server.run(graph)
