"""IPAdapter plus and Advanced-ControlNet: what hands pictures to the model."""

from __future__ import annotations

import pytest

from comfyui_process.graph import Graph, Output
from comfyui_process.server import Server

from .trial import Bench, Pair, check

PACKS = ("ComfyUI_IPAdapter_plus", "ComfyUI-Advanced-ControlNet", "comfyui_controlnet_aux")


def adapter(graph: Graph, model: Output, weights: str = "linear", masked: bool = False) -> Output:
    """A model with an image prompt."""
    made = graph.add("TestIPAdapter")
    mask = {"attn_mask": graph.add("SolidMask", value=0.5, width=128, height=128)} if masked else {}
    return graph.add(
        "IPAdapterEmbeds", model=model, ipadapter=made[0], pos_embed=made[1], neg_embed=made[2], weight=0.8,
        weight_type=weights, start_at=0.0, end_at=0.8, embeds_scaling="K+V", **mask,
    )  # fmt: skip


def before(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    return adapter(graph, model), clip


def twice(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    """Two image prompts, which share one replacer."""
    return adapter(graph, adapter(graph, model), "ease in", masked=True), clip


def after(weights: str = "linear", masked: bool = False) -> Pair:
    def build(bench: Bench, model: Output | None = None) -> Output:
        return bench.sample(model=adapter(bench.graph, model or bench.model, weights, masked))

    return Pair(build, oracle=lambda bench: build(bench, bench.reference(bench.encode(bench.text))))


def plain(bench: Bench) -> Output:
    return bench.sample()


def by_hand(bench: Bench) -> Output:
    return bench.sample(model=bench.reference(bench.encode(bench.text)))


def controlled(bench: Bench, how: str, oracle: bool = False) -> Output:
    """With a ControlNet by Advanced-ControlNet's node, on both prompts."""
    options = {}
    control, image = bench.add("TestControl"), bench.image()
    if how == "canny":
        image = bench.add("CannyEdgePreprocessor", image=image, low_threshold=100, high_threshold=200, resolution=128)
    if how == "scheduled":
        first = bench.add("TimestepKeyframe", start_percent=0.0, strength=0.4)
        options["timestep_kf"] = bench.add(
            "TimestepKeyframe", start_percent=0.5, strength=1.0, prev_timestep_kf=first[0]
        )
    if how == "weighted":
        options["weights_override"] = bench.add("ScaledSoftControlNetWeights", base_multiplier=0.8, flip_weights=False)
    if how == "masked":
        options["mask_optional"] = bench.mask(0, 64)
    texts = [bench.encode(text) for text in (bench.text, "")]
    applied = bench.add(
        "ACN_AdvancedControlNetApply_v2", positive=texts[0], negative=texts[1], control_net=control, image=image,
        strength=1.0, start_percent=0.0, end_percent=1.0, **options,
    )  # fmt: skip
    model = bench.reference(texts[0]) if oracle else bench.model
    return bench.sample(applied[0], model, negative=applied[1])


def control(how: str) -> Pair:
    return Pair(lambda bench: controlled(bench, how), oracle=lambda bench: controlled(bench, how, oracle=True))


PAIRS = {
    "an image prompt before": Pair(plain, before=before, oracle=by_hand),
    "an image prompt after": after(),
    "an image prompt with a mask": after(masked=True),
    "an image prompt, style transfer": after("style transfer"),
    "two image prompts before": Pair(plain, before=twice, oracle=by_hand),
    "a ControlNet": control("plain"),
    "a ControlNet, strength scheduled": control("scheduled"),
    "a ControlNet, weights by layer": control("weighted"),
    "a ControlNet with a mask": control("masked"),
    "a ControlNet, edges by Canny": control("canny"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_image_prompts(server: Server, pair: str) -> None:
    check(server, PAIRS[pair])
