"""Infusion with what users stack on it, against a second implementation at another hook point (`TestReference`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server

from . import graphs

pytestmark = pytest.mark.usefixtures("lora")
PROMPT = "a big circle at left on pink"
CIRCLE = "3"  # where "circle" stands: start, a, big, circle
Extend = Callable[[Graph, Output], Output]


def lora_loader(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    loaded = graph.add(
        "LoraLoader", model=model, clip=clip, lora_name="test.safetensors", strength_model=1.0, strength_clip=1.0
    )
    return loaded[0], loaded[1]


def both(
    server: Server, before: Extend | None = None, after: Extend | None = None, name: str = "round",
    condition: Callable[[Graph, Output], Output] | None = None, batch: int = 1, latent: Any = None,
    sampled: dict[str, Any] | None = None, negative: str = "",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Latents of the same stack with Infusion, with the reference, and with neither."""
    results = []
    for way in ("infusion", "reference", "neither"):
        graph = Graph()
        model, clip, vae = graphs.load(graph)
        text = graphs.encode(graph, clip, PROMPT)
        if before:
            model = before(graph, model)
        if way == "infusion":
            model, clip = graphs.patch(graph, model, clip, [name])
        if way == "reference":
            file = str(server.base / "models" / "infusion" / f"{name}.safetensors")
            model = graph.add("TestReference", model=model, file=file, positions=CIRCLE, text=text, maps=True)
        if after:
            model = after(graph, model)
        positive = graphs.encode(graph, clip, PROMPT)
        if condition:
            positive = condition(graph, positive)
        start = latent(graph, vae) if latent else graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
        empty = graphs.encode(graph, clip, negative)
        samples = graphs.sample(graph, model, positive, empty, latent=start, **(sampled or {}))
        results.append(graphs.drawn(server, graph, samples, f"stack-{way}"))
    return results[0], results[1], results[2]


def assert_same_and_at_work(latents: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    ours, reference, neither = latents
    assert graphs.close(ours, reference) < 2e-3
    assert graphs.close(neither, reference) > 0.05


def add(class_type: str, **inputs: Any) -> Extend:
    return lambda graph, model: graph.add(class_type, model=model, **inputs)


PAIRS: dict[str, dict[str, Any]] = {
    "alone": {},
    "lora before": {"before": add("LoraLoaderModelOnly", lora_name="test.safetensors", strength_model=1.0)},
    "lora after": {"after": add("LoraLoaderModelOnly", lora_name="test.safetensors", strength_model=1.0)},
    "attn2 replacer before": {"before": add("TestReplacer")},
    "attn2 replacer after": {"after": add("TestReplacer")},
    "attn1 patch": {"before": add("TestSelfAttention")},
    "row-growing patch before": {"before": add("TestCouple")},
    "row-growing patch after": {"after": add("TestCouple")},
    "patch that counts positive rows": {"before": add("TestRegional"), "batch": 2},
    "perturbed attention guidance": {"after": add("PerturbedAttentionGuidance", scale=2.0)},
    "self attention guidance": {"after": add("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0)},
    "freeu": {"before": add("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)},
    "hypertile": {"before": add("HyperTile", tile_size=64, swap_size=2, max_depth=0, scale_depth=False)},
    "rescale cfg": {"after": add("RescaleCFG", multiplier=0.7)},
    "one conditioning a batch": {"before": add("TestLowMemory")},
    "batch of four": {"batch": 4},
    "no guidance": {"sampled": {"cfg": 1.0}},
    "stochastic sampler": {"sampled": {"sampler_name": "euler_ancestral"}},
    "brownian sampler": {"sampled": {"sampler_name": "dpmpp_sde", "steps": 3}},
    "long negative": {"negative": "gray " * 90},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs(server: Server, concepts: Any, pair: str) -> None:
    assert_same_and_at_work(both(server, **PAIRS[pair]))


def test_normalized_attention_guidance(server: Server, concepts: Any) -> None:
    if "NAGuidance" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no Normalized Attention Guidance")
    guided, plain = both(server, after=add("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)), both(server)
    assert graphs.close(guided[2], plain[2]) > 0.05  # the guidance does something
    assert_same_and_at_work(guided)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_step_cache_keeps_base_and_concept_apart(server: Server, concepts: Any, cfg: float) -> None:
    """However the host splits the batch, the cached steps are those of the same rows."""

    def drawn(low_memory: bool, cached: bool = True) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        if low_memory:
            model = graph.add("TestLowMemory", model=model)
        model, clip = graphs.patch(graph, model, clip, ["round"])
        if cached:
            model = graph.add(
                "EasyCache", model=model, reuse_threshold=0.3, start_percent=0.0, end_percent=1.0, verbose=False
            )
        positive, empty = graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, "")
        return graphs.drawn(server, graph, graphs.sample(graph, model, positive, empty, steps=12, cfg=cfg), "cached")

    together, apart, exact = drawn(False), drawn(True), drawn(False, cached=False)
    assert graphs.close(together, exact) > 0.1  # steps were skipped
    assert graphs.close(apart, together) < 1e-3


def test_controlnet(server: Server, concepts: Any) -> None:
    def apply(graph: Graph, positive: Output) -> Output:
        image = graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x80FF20)
        return graph.add(
            "ControlNetApply", conditioning=positive, control_net=graph.add("TestControl"), image=image, strength=1.0
        )

    controlled, plain = both(server, condition=apply), both(server)
    assert graphs.close(controlled[2], plain[2]) > 0.05  # the ControlNet does something
    assert_same_and_at_work(controlled)


@pytest.mark.parametrize("area", ["mask", "area", "timestep range", "default", "boxes"])
def test_regional_conditioning(server: Server, concepts: Any, area: str) -> None:
    def apply(graph: Graph, positive: Output) -> Output:
        other = graphs.encode(graph, graph_clip(graph), "a big square at right on teal")
        if area == "mask":
            mask = graph.add("SolidMask", value=0.7, width=128, height=128)
            positive = graph.add(
                "ConditioningSetMask", conditioning=positive, mask=mask, strength=1.0, set_cond_area="default"
            )
        elif area == "area":
            positive = graph.add(
                "ConditioningSetArea", conditioning=positive, width=64, height=128, x=0, y=0, strength=1.0
            )
        elif area == "default":
            mask = graph.add("SolidMask", value=0.4, width=128, height=128)
            other = graph.add(
                "ConditioningSetMask", conditioning=other, mask=mask, strength=1.0, set_cond_area="default"
            )
            return graph.add("ConditioningSetDefaultCombine", cond=other, cond_DEFAULT=positive)
        elif area == "boxes":
            positive = graph.add("TestBoxed", conditioning=positive)
        else:
            positive = graph.add("ConditioningSetTimestepRange", conditioning=positive, start=0.0, end=0.6)
        return graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=other)

    assert_same_and_at_work(both(server, condition=apply))


def graph_clip(graph: Graph) -> Output:
    """The unpatched CLIP of a graph's TinyWorld."""
    (world,) = (k for k, v in graph.nodes.items() if v["class_type"] == "TestTinyWorld")
    return Output(world, 1)


def test_image_to_image(server: Server, concepts: Any) -> None:
    def start(graph: Graph, vae: Output) -> Output:
        image = graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x4080C0)
        return graph.add("VAEEncode", pixels=image, vae=vae)

    assert_same_and_at_work(both(server, latent=start, sampled={"denoise": 0.7}))


def test_inpainting_with_a_noise_mask(server: Server, concepts: Any) -> None:
    def start(graph: Graph, vae: Output) -> Output:
        image = graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x4080C0)
        latent = graph.add("VAEEncode", pixels=image, vae=vae)
        mask = graph.add("SolidMask", value=1.0, width=64, height=64)
        whole = graph.add("SolidMask", value=0.0, width=128, height=128)
        placed = graph.add("MaskComposite", destination=whole, source=mask, x=0, y=32, operation="add")
        return graph.add("SetLatentNoiseMask", samples=latent, mask=placed)

    ours, reference, neither = both(server, latent=start)
    assert_same_and_at_work((ours, reference, neither))
    assert graphs.close(ours[..., 9:], neither[..., 9:]) < 1e-5  # outside the mask nothing changes


def test_lora_order_does_not_matter(server: Server, concepts: Any) -> None:
    before, after = both(server, **PAIRS["lora before"]), both(server, **PAIRS["lora after"])
    assert graphs.close(before[0], after[0]) < 1e-4
    assert graphs.close(before[2], both(server)[2]) > 0.05  # the LoRA does something


def test_a_lora_loader_behind_the_patch_keeps_the_binding(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = lora_loader(graph, *graphs.patch(graph, model, clip, ["round"]))
    samples = graphs.sample(graph, model, graphs.encode(graph, clip, PROMPT), graphs.encode(graph, clip, ""))
    ours = graphs.drawn(server, graph, samples, "lora-clip")
    assert graphs.close(ours, both(server, **PAIRS["lora after"])[0]) < 1e-4


def test_cond_and_uncond_in_separate_calls(server: Server, concepts: Any) -> None:
    """A prompt of another length cannot share a batch when padding would be too long."""
    ours, reference, neither = both(server, negative="gray " * 400)
    assert_same_and_at_work((ours, reference, neither))


@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_a_lora_that_hooks_schedule(server: Server, concepts: Any, base_latent: str) -> None:
    """A concept of zeros leaves the picture as it is, keyframes of the LoRA included."""

    def drawn(name: str | None, second_half: float) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        if name:
            model, clip = graphs.patch(graph, model, clip, [name], base_latent=base_latent)
        hooks = graph.add("CreateHookLora", lora_name="test.safetensors", strength_model=1.0, strength_clip=0.0)
        frames = graph.add("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
        frames = graph.add("CreateHookKeyframe", strength_mult=second_half, start_percent=0.5, prev_hook_kf=frames)
        positive = graph.add(
            "ConditioningSetProperties", cond_NEW=graphs.encode(graph, clip, PROMPT), strength=1.0,
            set_cond_area="default", hooks=graph.add("SetHookKeyframes", hooks=hooks, hook_kf=frames),
        )  # fmt: skip
        samples = graphs.sample(graph, model, positive, graphs.encode(graph, clip, ""), steps=6)
        return graphs.drawn(server, graph, samples, "hooked")

    plain = drawn(None, 0.0)
    assert graphs.close(drawn(None, 1.0), plain) > 0.05  # the keyframes do something
    assert graphs.close(drawn("nothing", 0.0), plain) < 1e-4
    assert graphs.close(drawn("round", 0.0), plain) > 0.05


def test_dual_guidance(server: Server, concepts: Any) -> None:
    def drawn(infused: bool) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        text = graphs.encode(graph, clip, PROMPT)
        if infused:
            model, clip = graphs.patch(graph, model, clip, ["round"])
        else:
            file = str(server.base / "models" / "infusion" / "round.safetensors")
            model = graph.add("TestReference", model=model, file=file, positions=CIRCLE, text=text, maps=True)
        guider = graph.add(
            "DualCFGGuider", model=model, cond1=graphs.encode(graph, clip, "a big square on teal"),
            cond2=graphs.encode(graph, clip, PROMPT), negative=graphs.encode(graph, clip, ""),
            cfg_conds=3.0, cfg_cond2_negative=2.0, style="regular",
        )  # fmt: skip
        sampled = graph.add(
            "SamplerCustomAdvanced", noise=graph.add("RandomNoise", noise_seed=4), guider=guider,
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add("BasicScheduler", model=model, scheduler="normal", steps=4, denoise=1.0),
            latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=1),
        )  # fmt: skip
        return graphs.drawn(server, graph, sampled, "dual")

    assert graphs.close(drawn(True), drawn(False)) < 2e-3
