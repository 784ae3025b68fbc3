"""Efficiency's loader and sampler, rgthree's LoRA loader and contexts, text nodes of other packs."""

from __future__ import annotations

from functools import partial

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server
from tests.host import graphs

from .trial import Bench, Build, Pair, check

PACKS = ("efficiency-nodes-comfyui", "rgthree-comfy", "ComfyUI-Custom-Scripts")
TEXTS = {"token_normalization": "none", "weight_interpretation": "comfy"}


def loader(graph: Graph, text: str) -> Output:
    return graph.add(
        "Efficient Loader", ckpt_name="tiny.safetensors", vae_name="Baked VAE", clip_skip=-1, lora_name="None",
        lora_model_strength=1.0, lora_clip_strength=1.0, positive=text, negative="", empty_latent_width=128,
        empty_latent_height=128, batch_size=1, **TEXTS,
    )  # fmt: skip


def loaded(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """The loader in front of our patch, its own prompts unused."""
    made = loader(graph, "gray")
    return made[0], made[5]


def own_prompt(bench: Bench) -> Output:
    """The loader's own conditioning, which was encoded before our patch was there."""
    return bench.sample(loader(bench.graph, bench.text)[1])


def efficient(bench: Bench, model: Output | None = None) -> Output:
    """Efficiency's KSampler."""
    latent = bench.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    sampled = bench.add(
        "KSampler (Efficient)", model=model or bench.model, seed=3, steps=4, cfg=3.0, sampler_name="euler",
        scheduler="normal", positive=bench.encode(bench.text), negative=bench.encode(""), latent_image=latent,
        denoise=1.0, preview_method="none", vae_decode="false", optional_vae=bench.vae,
    )  # fmt: skip
    return sampled[3]


def power(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """rgthree's Power Lora Loader."""
    entry = {"on": True, "lora": "test.safetensors", "strength": 0.7}
    made = graph.add("Power Lora Loader (rgthree)", model=model, clip=clip, lora_1=entry)
    return made[0], made[1]


def power_after(bench: Bench, oracle: bool = False) -> Output:
    bench.model, bench.clip = power(bench.graph, bench.model, bench.clip)
    positive = bench.encode(bench.text)
    return bench.sample(positive, bench.reference(positive) if oracle else bench.model)


def context(bench: Bench) -> Output:
    """Model, CLIP and conditionings through two contexts."""
    first = bench.add("Context (rgthree)", model=bench.model, clip=bench.clip, vae=bench.vae)
    texts = [graphs.encode(bench.graph, first[2], text) for text in (bench.text, "")]
    second = bench.add("Context (rgthree)", base_ctx=first[0], positive=texts[0], negative=texts[1])
    return bench.sample(second[4], second[1], negative=second[5])


def power_prompt(bench: Bench) -> Output:
    made = bench.add(
        "Power Prompt (rgthree)", prompt=bench.text, opt_model=bench.model, opt_clip=bench.clip,
        insert_lora="CHOOSE", insert_embedding="CHOOSE", insert_saved="CHOOSE",
    )  # fmt: skip
    return bench.sample(made[0], made[1])


def shown(bench: Bench) -> Output:
    """A prompt that comes out of a text node."""
    text = bench.add("ShowText|pysssss", text=bench.text)
    return bench.sample(bench.add("CLIPTextEncode", clip=bench.clip, text=text))


def by_hand(build: Build) -> Build:
    return lambda bench: build(bench, bench.reference(bench.encode(bench.text)))  # type: ignore[call-arg]


def alone(bench: Bench, model: Output | None = None) -> Output:
    return bench.sample(model=model)


PAIRS = {
    "efficient loader, then our patch": Pair(alone, before=loaded, oracle=by_hand(alone)),
    "efficient loader's own prompt": Pair(own_prompt, acts=False),
    "efficient sampler": Pair(efficient, oracle=by_hand(efficient)),
    "power lora loader before": Pair(alone, before=power, oracle=by_hand(alone)),
    "power lora loader after": Pair(power_after, oracle=partial(power_after, oracle=True)),
    "contexts": Pair(context, oracle=by_hand(alone)),
    "power prompt": Pair(power_prompt, oracle=by_hand(alone)),
    "a text node": Pair(shown, oracle=by_hand(alone)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_loaders(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])
