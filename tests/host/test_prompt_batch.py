"""Infusion Prompt Batch: every picture is the one that its prompt gives alone, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept

from . import graphs
from .test_families import concept, small

PROMPTS = ("a big circle at left on pink", "a small square at right on teal", "a big triangle on gray")
LOADED = ("round", "corner")
SAME, DIFFERENT = 2e-3, 0.03


def loaded(graph: Graph, names: Sequence[str] = LOADED, **options: Any) -> tuple[Output, Output]:
    model, clip, _ = graphs.load(graph)
    return graphs.patch(graph, model, clip, list(names), **options) if names else (model, clip)


def rows(graph: Graph, clip: Output, prompts: Sequence[str]) -> tuple[Output, Output]:
    """The conditioning of a batch of prompts, and how many there are."""
    made = graph.add("InfusionPromptBatch", clip=clip, prompts="\n\n".join(prompts))
    return made[0], made[1]


def together(server: Server, prompts: Sequence[str], times: int = 1, **options: Any) -> torch.Tensor:
    """What a batch of prompts draws in one run, `times` pictures of each."""
    return drawn(server, prompts, None, times * len(prompts), **options)


def alone(server: Server, prompts: Sequence[str], picture: int, **options: Any) -> torch.Tensor:
    """What one of the prompts draws by itself, from the noise of its picture."""
    return drawn(server, prompts, picture, max(picture + 1, len(prompts)), **options)


def drawn(
    server: Server, prompts: Sequence[str], picture: int | None, size: int, names: Sequence[str] = LOADED,
    negative: str = "", beside: dict[str, Any] | None = None, patch: dict[str, Any] | None = None, **sampled: Any,
) -> torch.Tensor:  # fmt: skip
    graph = Graph()
    model, clip = loaded(graph, names, **(patch or {}))
    if beside:
        model = graph.add(**beside, model=model)
    if picture is None:
        positive, count = rows(graph, clip, prompts)
        batch: Any = count if size == len(prompts) else size
    else:
        positive, batch = graphs.encode(graph, clip, prompts[picture % len(prompts)]), size
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
    if picture is not None:
        latent = graph.add("LatentFromBatch", samples=latent, batch_index=picture, length=1)
    samples = graphs.sample(graph, model, positive, graphs.encode(graph, clip, negative), latent=latent, **sampled)
    return graphs.drawn(server, graph, samples, "rows")


def assert_each_is_its_own(server: Server, prompts: Sequence[str], times: int = 1, **options: Any) -> None:
    latents = together(server, prompts, times, **options)
    assert len(latents) == times * len(prompts)
    for picture, latent in enumerate(latents):
        assert graphs.close(latent[None], alone(server, prompts, picture, **options)) < SAME, picture


WAYS: dict[str, dict[str, Any]] = {
    "shared": {},
    "own": {"patch": {"base_latent": "own"}},
    "no guidance": {"cfg": 1.0},
    "one conditioning a batch": {"beside": {"class_type": "TestLowMemory"}},
    "row-growing patch": {"beside": {"class_type": "TestCouple"}},
    "patch that counts positive rows": {"beside": {"class_type": "TestRegional"}},
    "several tiles at once": {"beside": {"class_type": "TestTiles", "tile": 8, "at_once": 3}},
    "separate calls": {"negative": "gray " * 400},
    "longer negative": {"negative": "gray " * 90},
    "layouts in all spaces": {"names": ("layered", "valued", "parted")},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_picture_is_its_prompts_own(server: Server, concepts: Any, way: str) -> None:
    prompts = PROMPTS
    if way == "layouts in all spaces":
        prompts = ("a big <layered> on pink", "a small <valued> on teal", "a gray <parted>")
    assert_each_is_its_own(server, prompts, **WAYS[way])


def test_a_concept_touches_the_pictures_that_name_it_alone(server: Server, concepts: Any) -> None:
    ours, plain = together(server, PROMPTS), together(server, PROMPTS, names=())
    assert graphs.close(ours[:1], plain[:1]) > DIFFERENT
    assert graphs.close(ours[1:2], plain[1:2]) > DIFFERENT
    assert graphs.close(ours[2:], plain[2:]) < 1e-4
    one = together(server, PROMPTS, names=("round",))
    assert graphs.close(one[:1], ours[:1]) < SAME
    assert graphs.close(one[1:], plain[1:]) < 1e-4


def test_prompts_choose_among_concepts_of_one_word_by_name(server: Server, concepts: Any) -> None:
    prompts = ("a big <round> on pink", "a big <layered> on pink", "a <round> at left and a <layered> at right")
    assert_each_is_its_own(server, prompts, names=("round", "layered"))


def test_each_picture_takes_maps_as_its_own_concepts_do(server: Server, concepts: Any) -> None:
    """Of two patches in a chain one never replaces maps, and the other does."""
    latents = {}
    for picture in (None, 0, 1):
        graph = Graph()
        model, clip = loaded(graph, ["round"], maps_end=0.0)
        model, clip = graphs.patch(graph, model, clip, ["corner"])
        latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        if picture is None:
            positive, _ = rows(graph, clip, PROMPTS[:2])
        else:
            positive = graphs.encode(graph, clip, PROMPTS[picture])
            latent = graph.add("LatentFromBatch", samples=latent, batch_index=picture, length=1)
        samples = graphs.sample(graph, model, positive, graphs.encode(graph, clip, ""), latent=latent)
        latents[picture] = graphs.drawn(server, graph, samples, "chained-rows")
    for picture in (0, 1):
        assert graphs.close(latents[None][picture : picture + 1], latents[picture]) < SAME


def test_prompts_of_different_length(server: Server, concepts: Any) -> None:
    assert_each_is_its_own(server, (PROMPTS[0], "gray " * 80 + PROMPTS[1], "pink " * 160 + PROMPTS[0]))


def test_several_pictures_of_each_prompt(server: Server, concepts: Any) -> None:
    assert_each_is_its_own(server, PROMPTS[:2], times=2)


def test_a_negative_for_each_picture(server: Server, concepts: Any) -> None:
    """A concept that the negative of one picture names is in that picture's negative alone."""
    latents = []
    for negatives in (("pink", "a circle"), ("pink",), ("a circle",)):
        graph = Graph()
        model, clip = loaded(graph)
        negative, _ = rows(graph, clip, negatives)
        latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
        positive, _ = rows(graph, clip, PROMPTS[:2])
        samples = graphs.sample(graph, model, positive, negative, latent=latent)
        latents.append(graphs.drawn(server, graph, samples, "negatives"))
    both, pink, circle = latents
    assert graphs.close(both[:1], pink[:1]) < SAME
    assert graphs.close(both[1:], circle[1:]) < SAME
    assert graphs.close(pink[1:], circle[1:]) > DIFFERENT


@pytest.mark.parametrize("count", [1, 2])
def test_states_alone_are_known(server: Server, concepts: Any, count: int) -> None:
    latents = []
    for stripped in (True, False):  # the other way round the sampler would know the very tensor
        graph = Graph()
        model, clip = loaded(graph)
        positive, batch = rows(graph, clip, PROMPTS[:count])
        if stripped:
            positive = graph.add("TestBare", conditioning=positive)
        latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=batch)
        empty = graphs.encode(graph, clip, "")
        samples = graphs.sample(graph, model, positive, empty, latent=latent)
        latents.append(graphs.drawn(server, graph, samples, "bare"))
    assert graphs.close(*latents) < 1e-5
    assert graphs.close(latents[0][:1], together(server, PROMPTS, names=())[:1]) > DIFFERENT


def test_rows_that_another_node_joined_are_known(server: Server, concepts: Any) -> None:
    graph = Graph()
    model, clip = loaded(graph)
    one, other = (graphs.encode(graph, clip, prompt) for prompt in PROMPTS[:2])
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)
    positive, empty = graph.add("TestRows", one=one, other=other), graphs.encode(graph, clip, "")
    samples = graphs.sample(graph, model, positive, empty, latent=latent)
    theirs = graphs.drawn(server, graph, samples, "joined-rows")
    assert graphs.close(theirs, together(server, PROMPTS[:2])) < SAME


def test_the_pooled_text_of_an_xl_is_each_pictures_own(server: Server) -> None:
    save_concept(server.base / "models" / "infusion" / "sdxl-cat.safetensors", concept("sdxl"))
    prompts, latents = ("a photo of a cat on a roof", "a dog"), {}
    for picture in (None, 0, 1):
        graph = Graph()
        model, clip = graphs.patch(graph, *small(graph, "sdxl"), ["sdxl-cat"])
        latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=2)
        if picture is None:
            positive, _ = rows(graph, clip, prompts)
        else:
            positive = graphs.encode(graph, clip, prompts[picture])
            latent = graph.add("LatentFromBatch", samples=latent, batch_index=picture, length=1)
        samples = graphs.sample(graph, model, positive, graphs.encode(graph, clip, ""), latent=latent)
        latents[picture] = graphs.drawn(server, graph, samples, "xl-rows")
    for picture in (0, 1):
        assert graphs.close(latents[None][picture : picture + 1], latents[picture]) < SAME


def masks(server: Server, prompts: Sequence[str], picture: int | None) -> list[np.ndarray]:
    """Where "circle" is seen, by picture, after one step."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    seen = graph.add("InfusionInspectMaps", model=model, clip=clip, words="circle")
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=len(prompts))
    if picture is None:
        positive, _ = rows(graph, seen[1], prompts)
    else:
        positive = graphs.encode(graph, seen[1], prompts[picture])
        latent = graph.add("LatentFromBatch", samples=latent, batch_index=picture, length=1)
    empty = graphs.encode(graph, seen[1], "")
    samples = graphs.sample(graph, seen[0], positive, empty, latent=latent, steps=1)
    decoded = graph.add("VAEDecode", samples=samples, vae=vae)
    shown = graph.add("InfusionMapImages", maps=seen[2], images=decoded, word="circle", size=0)
    ran = graph.add("SaveImage", images=graph.add("MaskToImage", mask=shown[1]), filename_prefix="row-mask")
    names = [image["filename"] for image in server.run(graph).outputs[ran.node]["images"]]
    return [np.asarray(Image.open(server.output / name).convert("L"), dtype=float) / 255 for name in names]


def test_maps_of_each_picture_are_of_its_own_prompt(server: Server) -> None:
    prompts = (PROMPTS[0], PROMPTS[1], "at right on pink a circle")
    found = masks(server, prompts, None)
    assert not found[1].any()
    for picture in (0, 2):
        assert abs(found[picture] - masks(server, prompts, picture)[0]).max() < 0.01


def test_each_picture_is_saved_under_its_prompts_name(server: Server, concepts: Any) -> None:
    graph = Graph()
    _, clip = loaded(graph)
    made = graph.add("InfusionPromptBatch", clip=clip, prompts="\n".join(["", "a <round>: on/pink", "  ", "x " * 50]))
    pictures = graph.add("EmptyImage", width=64, height=64, batch_size=made[1], color=0)
    apart = graph.add("RebatchImages", images=pictures, batch_size=1)
    saved = graph.add("SaveImage", images=apart, filename_prefix=made[2])
    names = [image["filename"] for image in server.run(graph).outputs[saved.node]["images"]]
    assert names == ["a-round-on-pink_00001_.png", f"{'x-' * 30}_00001_.png"]


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_batch_that_does_not_fit_is_refused(server: Server, concepts: Any, pictures: int) -> None:
    with pytest.raises(PromptError, match=f"2 prompts for a batch of {pictures}: .* batch_size of the latent"):
        drawn(server, PROMPTS[:2], None, pictures)


REFUSED = {
    "none": ("\n  \n", "there is no prompt; write one per line"),
    "too many": ("\n".join(["a circle"] * 65), "65 prompts are more than the 64"),
    "no common length": ("\n".join(["pink " * 400, "teal " * 320]), "385, 462 positions long"),
    "unknown name": ("a circle\na <rund>", "names <rund> but no such concept is loaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_encoded_is_refused(server: Server, concepts: Any, case: str) -> None:
    text, reason = REFUSED[case]
    graph = Graph()
    _, clip = loaded(graph)
    graph.add("PreviewAny", source=graph.add("InfusionPromptBatch", clip=clip, prompts=text)[1])
    with pytest.raises(PromptError, match=reason):
        server.run(graph)


def test_names_of_pictures_are_short_enough_for_a_file(server: Server, concepts: Any) -> None:
    graph = Graph()
    _, clip = loaded(graph)
    batch = graph.add("InfusionPromptBatch", clip=clip, prompts="a big circle " * 9 + "\na square")
    shown = graph.add("PreviewAny", source=batch[2])
    text = " ".join(server.run(graph).outputs[shown.node]["text"])
    assert ("a-big-circle-" * 9)[:60] in text
    assert ("a-big-circle-" * 9)[:61] not in text
