"""What Infusion Train cannot train on, told by name before the first step; and a LoRA, which it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import load_concept

from . import graphs
from .learning import WIDGETS, train


def test_a_preview_prompt_without_the_subject_is_refused_before_training(server: Server, photos: list[str]) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos[:1], steps=400, seed=78, preview_prompts="a dog")[1])
    with pytest.raises(PromptError, match=r"the preview prompt 'a dog' must hold \{\} once, where the word goes"):
        server.run(graph)


def test_a_folder_that_takes_no_snapshots_is_found_before_the_first_step(server: Server, photos: list[str]) -> None:
    folder, aside = server.output / "infusion" / "snapshots", server.output / "infusion" / "aside"
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.write_text("a file")
    try:
        graph = Graph()
        graph.add("PreviewImage", images=train(graph, photos[:1], steps=400, seed=77)[1])
        with pytest.raises(PromptError, match=r"cannot write .*snapshots: .*choose another place"):
            server.run(graph)
    finally:
        folder.unlink()
        aside.rename(folder)
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos[:1], steps=1, seed=77)[1])
    server.run(graph)


PATCHED = {
    "attn2 replacer": ("TestReplacer", {}, r"others\.replace"),
    "attention couple": ("TestCouple", {}, r"others\."),
    "core's FreeU": ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, r"nodes_freelunch\.\w+"),
    "model function": ("TestShift", {"by": 0.1}, r"vision\."),
}


@pytest.mark.parametrize("case", PATCHED)
def test_a_model_with_patches_is_refused_by_name(server: Server, photos: list[str], case: str) -> None:
    node, widgets, name = PATCHED[case]
    with pytest.raises(PromptError, match=f"{name}.* patches this MODEL, .*connect the MODEL from in front of that"):
        trained_on(server, photos, lambda graph, model: graph.add(node, model=model, **widgets))


def test_a_model_with_our_own_patches_is_refused_too(server: Server, photos: list[str], concepts: Any) -> None:
    def patched(graph: Graph, model: Output) -> Output:
        return graphs.patch(graph, model, graphs.load(graph)[1], ["round"])[0]

    def watched(graph: Graph, model: Output) -> Output:
        return graph.add("InfusionInspectMaps", model=model, clip=graphs.load(graph)[1], words="circle")[0]

    for patch, name in ((patched, r"patch\.Patch"), (watched, r"observer\.inputs")):
        with pytest.raises(PromptError, match=name + " patches this MODEL"):
            trained_on(server, photos, patch)


def test_a_lora_stays_and_is_trained_on(server: Server, photos: list[str], lora: Any) -> None:
    def with_lora(graph: Graph, model: Output) -> Output:
        return graph.add("LoraLoaderModelOnly", model=model, lora_name="test.safetensors", strength_model=1.0)

    plain, other = (trained_on(server, photos, change) for change in (lambda graph, model: model, with_lora))
    assert any((other.tensors[k] - v).norm() > 0.05 * v.norm() for k, v in plain.tensors.items())


def trained_on(server: Server, photos: list[str], change: Callable[[Graph, Output], Output]) -> Any:
    """What is learned on a changed MODEL."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    trained = graph.add(
        "InfusionTrain", model=change(graph, model), clip=clip, vae=vae, images=graphs.images(graph, photos[:1]),
        **{**WIDGETS, "steps": 2, "preview_every": 0},
    )  # fmt: skip
    graph.add("InfusionSaveConcept", concept=trained, filename="changed/model", storage="fp16")
    server.run(graph)
    written = (server.output / "infusion" / "changed").glob("*.safetensors")
    return load_concept(max(written, key=lambda path: path.stat().st_mtime_ns))


BAD = {
    "empty word": ({"word": " "}, "the word is empty"),
    "placeholder": ({"word": "<circle>"}, "'<circle>' cannot be a concept's word; write a plain class word"),
    "path": ({"word": "../../x"}, "'../../x' cannot be a concept's word"),
    "folder": ({"word": "a/b"}, "'a/b' cannot be a concept's word"),
    "control character": ({"word": "a\x00b"}, "cannot be a concept's word"),
    "caption without a place": ({"captions": "a photo"}, "must hold {} once"),
    "resolution": ({"resolution": 64, "layout": "block", "captions": "{} " + "gray " * 100 + "\n{}"},
                   "captions are of very different length"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(server: Server, photos: list[str], case: str) -> None:
    changed, message = BAD[case]
    graph = Graph()
    graph.add("InfusionSaveConcept", concept=train(graph, photos[:1], **changed), filename="bad", storage="fp16")
    with pytest.raises(PromptError) as refused:
        server.run(graph)
    assert message in str(refused.value)


def test_a_bad_word_is_refused_before_the_queue_and_a_linked_one_before_the_first_step(
    server: Server, photos: list[str]
) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos[:1], word="<circle>")[1])
    with pytest.raises(PromptError, match="custom_validation_failed"):
        server.post("/prompt", {"prompt": graph.nodes})
    graph = Graph()
    linked = graph.add("PrimitiveString", value="<circle>")
    graph.add("PreviewImage", images=train(graph, photos[:1], word=linked)[1])
    with pytest.raises(PromptError, match="'<circle>' cannot be a concept's word; write a plain"):
        server.run(graph)
    graph = Graph()
    linked = graph.add("PrimitiveString", value="circle")
    graph.add("PreviewImage", images=train(graph, photos[:1], word=linked, steps=1)[1])
    server.run(graph)
