"""Infusion Overfit Metrics in the real host, against the embedded host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.concepts import LoadedConcept, words_of
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.metrics.fisher import DenoiserPredictor, Divergence, fisher_divergence
from infusion_core.residuals import ConceptResidual

from . import graphs

OTHER = ("a big square at left on pink", "a small triangle on teal", "a diamond at right")
NAMING = "a big circle at left on pink"
DRAWS = 9
LORA_LAYERS = {
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.1",
}
Customise = Callable[[Graph, Output, Output], tuple[Output, Output]]


@dataclass
class Overfit:
    """What the node said: mean, bounds, words, and the run's messages."""

    figures: list[float]
    report: str
    messages: list[dict[str, Any]]


def overfit(
    server: Server, customise: Customise, prompts: Sequence[str] = OTHER, seed: int = 0, **stop: Any
) -> Overfit:
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    custom, custom_clip = customise(graph, model, clip)
    node = graph.add(
        "InfusionOverfitMetrics", base_model=model, custom_model=custom, clip=clip, vae=vae, custom_clip=custom_clip,
        images=graphs.images(graph, ["picture-0.png", "picture-1.png"]), prompts="\n".join(prompts), draws=DRAWS,
        resolution=128, seed=seed,
    )  # fmt: skip
    if stop:
        server.run(graph, **stop)
    graph.add("SaveImage", images=node[1], filename_prefix="divergence")
    found, ran = graphs.floats(server, graph, [node[2], node[3], node[4]])
    return Overfit(found, ran.outputs[node.node]["text"][0], ran.messages)


def infused(*names: str, **options: Any) -> Customise:
    return lambda graph, model, clip: graphs.patch(graph, model, clip, list(names), **options)


def with_lora(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
    loaded = graph.add("LoraLoaderModelOnly", model=model, lora_name="test.safetensors", strength_model=1.0)
    return loaded, clip


def embedded(custom: EmbeddedModel, pictures: list[Image.Image], prompts: Sequence[str],
             concepts: Sequence[LoadedConcept] = ()) -> Divergence:  # fmt: skip
    """The same draws in the embedded host."""
    base = load_model("tinyworld")
    texts = [base.text.encode(p, words_of(concepts)) for p in prompts]
    sides = DenoiserPredictor(base.denoiser, texts), DenoiserPredictor(custom.denoiser, texts, concepts)
    return fisher_divergence(*sides, base.encode(pictures[:2]), len(prompts), base.denoiser.sigmas, DRAWS)


def assert_alike(ours: Overfit, theirs: Divergence) -> None:
    interval = theirs.interval
    assert interval.low > 0
    assert ours.figures == pytest.approx([interval.mean, interval.low, interval.high], rel=1e-3)


@pytest.mark.parametrize("customise", [
    infused("round"), infused("valued"), infused("binned", "peak"), infused("round", base_latent="own"),
    infused("round", start=0.2, maps_end=0.6),
], ids=["block", "value", "two", "own", "windows"])  # fmt: skip
def test_a_concept_changes_exactly_nothing_on_other_prompts(
    server: Server, concepts: Any, pictures: Any, customise: Any
):
    found = overfit(server, customise, (OTHER[0], OTHER[2]))
    assert found.figures == [0.0, 0.0, 0.0]
    assert found.report.startswith("latent Fisher divergence 0 (95% interval 0 to 0)")
    assert all(message["type"] != "infusion.warning" for message in found.messages)  # nothing was to act here


def test_a_lora_changes_what_the_embedded_host_says_it_changes(server: Server, lora: Path, pictures: Any) -> None:
    merged, state = load_model("tinyworld"), load_file(lora)
    for key in (k.removesuffix(".lora_up.weight") for k in state if k.endswith("lora_up.weight")):
        layer, part = key.removeprefix("diffusion_model.").split(".transformer_blocks.0.")
        linear = merged.denoiser.unet.get_submodule(f"{LORA_LAYERS[layer]}.transformer_blocks.0.{part}")
        linear.weight.data += state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
    ours = overfit(server, with_lora)
    assert_alike(ours, embedded(merged, pictures, OTHER))
    again = overfit(server, infused("round"))  # the LoRA is off the base model again
    assert again.figures == [0.0, 0.0, 0.0]


def test_a_lora_under_infusion_is_the_lora_alone(server: Server, lora: Path, concepts: Any, pictures: Any) -> None:
    def both(graph: Graph, model: Output, clip: Output) -> tuple[Output, Output]:
        return graphs.patch(graph, *with_lora(graph, model, clip), ["round"])

    assert overfit(server, both).figures == pytest.approx(overfit(server, with_lora).figures, rel=1e-6)


@pytest.mark.parametrize("name", ["round", "valued", "binned"])
@pytest.mark.parametrize("base_latent", ["shared", "own"])
def test_a_prompt_that_names_the_concept_is_told_and_measured(
    server: Server, concepts: dict[str, ConceptResidual], pictures: Any, name: str, base_latent: str
) -> None:
    prompts = (NAMING, OTHER[0])
    ours = overfit(server, infused(name, base_latent=base_latent), prompts)
    theirs = embedded(load_model("tinyworld"), pictures, prompts, [LoadedConcept(name, concepts[name])])
    assert theirs.of_prompt(1) == 0.0
    assert_alike(ours, theirs)
    assert f"{NAMING}  (names a concept!)" in ours.report
    assert f"  0  {OTHER[0]}\n" in ours.report


def test_progress_interrupt_and_seed(server: Server, lora: Path, pictures: Any) -> None:
    with pytest.raises(PromptError, match="interrupted"):
        overfit(server, with_lora, seed=1, interrupt_at=3)
    first = overfit(server, with_lora, seed=1)
    progress = [m["data"]["value"] for m in first.messages if m["type"] == "progress" and m["data"]["max"] == 2 * DRAWS]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (1, 2 * DRAWS)  # the host leaves some out
    assert overfit(server, with_lora, seed=2).figures != first.figures


@pytest.mark.parametrize("kind", ["tinyworld", "sd2", "sdxl"])
def test_a_known_difference_has_its_known_norm(server: Server, pictures: Any, kind: str) -> None:
    """Epsilon and v-prediction models; a constant 0.2 less noise everywhere is 0.02 per number of the latent."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    if kind != "tinyworld":
        small = graph.add("TestSmall", kind=kind)
        model, clip = small[0], small[1]
    node = graph.add(
        "InfusionOverfitMetrics", base_model=model, custom_model=graph.add("TestShift", model=model, by=0.2),
        clip=clip, vae=vae, images=graphs.images(graph, ["picture-0.png"]), prompts="\n".join(OTHER), draws=4,
        resolution=64, seed=0,
    )  # fmt: skip
    figures, _ = graphs.floats(server, graph, [node[2], node[3], node[4]])
    assert figures == pytest.approx([0.5 * 0.2**2 * 4 * 8 * 8] * 3, rel=1e-3)


def test_what_cannot_be_compared_is_refused(server: Server, pictures: Any) -> None:
    with pytest.raises(PromptError, match="base model is tinyworld2 and the customised one sdxl"):
        overfit(server, lambda graph, model, clip: (graph.add("TestSmall", kind="sdxl"), clip))
    with pytest.raises(PromptError, match="no prompts; write some"):
        overfit(server, lambda graph, model, clip: (model, clip), [" "])
    with pytest.raises(PromptError, match="9 draws are not enough for 10 prompts"):
        overfit(server, lambda graph, model, clip: (model, clip), ["a circle", "", *["a square"] * 9])
