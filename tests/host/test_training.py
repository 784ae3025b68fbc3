"""Infusion Train, save, load, patch, sample: in the real host, against the embedded trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.previews import read_strip
from infusion_core.residual_file import load_concept
from infusion_core.training.overfitting import RESTRAINED
from infusion_core.training.residual import ResidualSettings

from . import graphs

WORD = "circle"
WIDGETS = {"word": WORD, "steps": 6, "batch_size": 2, "learning_rate": 0.02, "layout": "block", "bins": 1,
           "resolution": 128, "seed": 5, "preview_every": 3, "captions": ""}  # fmt: skip


def train(graph: Graph, names: list[str], **changed: Any) -> Output:
    model, clip, vae = graphs.load(graph)
    inputs = {**WIDGETS, **changed}
    return graph.add("InfusionTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, names), **inputs)


def expected(settings: ResidualSettings, count: int, **options: Any) -> dict[str, torch.Tensor]:
    """What the embedded host learns from the same pictures."""
    pictures = training_images(CONCEPTS["ember"])[:count]
    trainer = trainer_for(load_model("tinyworld"), pictures, WORD, settings, **options)
    for _ in trainer.run():
        pass
    return dict(trainer.learned().tensors)


def settings(**changed: Any) -> ResidualSettings:
    same = {k: WIDGETS[k] for k in ("steps", "batch_size", "learning_rate", "layout", "bins", "seed")}
    return ResidualSettings(**{**same, "snapshot_every": WIDGETS["preview_every"], **changed})  # type: ignore[arg-type]


def assert_alike(learned: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert learned.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor.abs().max() > 0.01
        assert (learned.tensors[name] - tensor).norm() < 0.02 * tensor.norm(), name


@pytest.mark.parametrize("layout", ["block", "value", "parts"])
def test_the_host_learns_what_the_embedded_host_learns(server: Server, photos: list[str], layout: str) -> None:
    graph = Graph()
    trained = train(graph, photos, layout=layout)
    saved = graph.add("InfusionSaveConcept", concept=trained, filename=f"made/{layout}", storage="fp16")
    graph.add("SaveImage", images=trained[1], filename_prefix="loss")
    ran = server.run(graph)
    learned = load_concept(server.output / "infusion" / "made" / f"{layout}.safetensors")
    assert_alike(learned, expected(settings(layout=layout), len(photos)))
    told = {"steps": "6", "lr": "0.02", "batch": "2", "images": "3", "seed": "5", "resolution": "128x128"}
    assert {key: learned.training.get(key) for key in told} == told
    assert learned.training["replacement_end"] == "0.4"
    assert "replace_maps" not in learned.training
    assert float(learned.training["validation_loss"]) > 0
    assert learned.thumbnail
    assert ran.previews >= 2  # one picture per snapshot
    assert f"{layout}.safetensors" in ran.outputs[saved.node]["text"][0]
    progress = [m["data"]["value"] for m in ran.messages if m["type"] == "progress" and m["data"]["max"] == 6]
    assert progress == sorted(progress)
    assert len(set(progress)) > 2  # the host leaves out some that come fast
    assert progress[-1] == 6
    assert list(server.output.glob("loss_*.png"))


@pytest.mark.parametrize("every", [0, 2])
def test_previews_are_one_picture_of_steps_and_prompts(server: Server, photos: list[str], every: int) -> None:
    graph, lines = Graph(), "a photo of a {}\n\n  a big {} at left on pink\n"
    trained = train(graph, photos[:1], steps=5, seed=every + 60, preview_every=every, preview_prompts=lines)
    graph.add("SaveImage", images=trained[4], filename_prefix=f"every-{every}")
    ran = server.run(graph)
    (saved,) = server.output.glob(f"every-{every}_*.png")
    (folder,) = (
        path.parent
        for path in (server.output / "infusion" / "snapshots").glob("*-circle*/step-00005.safetensors")
        if load_concept(path).training["seed"] == str(every + 60)
    )
    strips = sorted(folder.glob("step-*.png"))
    if not every:
        assert strips == []
        return
    assert [path.name for path in strips] == ["step-00002.png", "step-00004.png", "step-00005.png"]
    assert ran.previews >= 1
    read = [read_strip(path) for path in strips]
    assert {strip.prompts for strip in read if strip} == {("a photo of a circle", "a big circle at left on pink")}
    sheet = np.asarray(Image.open(saved).convert("RGB"))
    for strip in read:
        assert strip is not None
        assert all(is_within(np.asarray(picture), sheet) for picture in strip.pictures)


def is_within(part: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a picture is somewhere in another one, bit for bit."""
    height, width = part.shape[:2]
    starts = np.argwhere((whole[: -height + 1, : -width + 1] == part[0, 0]).all(2))
    return any((whole[y : y + height, x : x + width] == part).all() for y, x in starts)


def test_a_preview_prompt_without_the_subject_is_refused_before_training(server: Server, photos: list[str]) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos[:1], steps=400, seed=78, preview_prompts="a dog")[1])
    with pytest.raises(PromptError, match=r"the preview prompt 'a dog' must hold \{\} once, where the word goes"):
        server.run(graph)


def test_without_map_replacement_too(server: Server, photos: list[str]) -> None:
    graph = Graph()
    graph.add("InfusionSaveConcept", concept=train(graph, photos, replace_maps=False), filename="own", storage="fp16")
    server.run(graph)
    learned = load_concept(server.output / "infusion" / "own.safetensors")
    assert learned.training["replace_maps"] == "false"
    assert_alike(learned, expected(settings(replace_maps=False), len(photos)))
    replaced = expected(settings(), len(photos))
    assert any((learned.tensors[k] - v).norm() > 0.05 * v.norm() for k, v in replaced.items())


def test_train_save_load_patch_sample(server: Server, photos: list[str]) -> None:
    graph = Graph()
    trained = train(graph, photos, steps=4, seed=8)
    graph.add("InfusionSaveConcept", concept=trained, filename="circus", storage="int8")
    server.run(graph)
    assert "circus.safetensors" in json.dumps(server.get("/object_info/InfusionLoadConcept"))
    use = Graph()
    model, clip, vae = graphs.load(use)
    model, clip = graphs.patch(use, model, clip, ["circus"])
    empty = graphs.encode(use, clip, "")
    samples = graphs.sample(use, model, graphs.encode(use, clip, "a big <circus> at left on pink"), empty)
    use.add("SaveImage", images=use.add("VAEDecode", samples=samples, vae=vae), filename_prefix="circus")
    ran = server.run(use)
    (loader,) = (k for k, v in use.nodes.items() if v["class_type"] == "InfusionLoadConcept")
    assert ran.outputs[loader]["text"] == ["circus: 'circle' for tinyworld2, 4 steps, layout block, strength 1"]
    assert list(server.output.glob("circus_*.png"))


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


def test_training_goes_on_from_a_concept(server: Server, photos: list[str]) -> None:
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    first = train(graph, photos, steps=3)
    second = graph.add("InfusionTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, photos),
                       **{**WIDGETS, "steps": 3, "seed": 6}, continue_from=first)  # fmt: skip
    graph.add("InfusionSaveConcept", concept=second, filename="longer", storage="fp16")
    server.run(graph)
    pictures, model = training_images(CONCEPTS["ember"])[:3], load_model("tinyworld")
    earlier = trainer_for(model, pictures, WORD, settings(steps=3))
    for _ in earlier.run():
        pass
    wanted = expected(settings(steps=3, seed=6), 3, start=earlier.learned())
    assert_alike(load_concept(server.output / "infusion" / "longer.safetensors"), wanted)


def test_a_mask_keeps_the_background_out_of_the_loss(server: Server, photos: list[str]) -> None:
    def learned(value: float, name: str) -> Any:
        graph = Graph()
        mask = graph.add("SolidMask", value=1.0, width=128, height=64)
        whole = graph.add("SolidMask", value=value, width=128, height=128)
        placed = graph.add("MaskComposite", destination=whole, source=mask, x=0, y=0, operation="or")
        trained = train(graph, photos[:1], steps=3, mask=placed)
        graph.add("InfusionSaveConcept", concept=trained, filename=name, storage="fp16")
        server.run(graph)
        return load_concept(server.output / "infusion" / f"{name}.safetensors")

    even, upper = learned(1.0, "even"), learned(0.0, "upper")
    assert_alike(even, expected(settings(steps=3), 1))
    assert any((upper.tensors[k] - even.tensors[k]).norm() > 0.1 * even.tensors[k].norm() for k in even.tensors)


def test_an_interrupt_leaves_a_usable_snapshot_and_the_host_works_on(server: Server, photos: list[str]) -> None:
    graph = Graph()
    trained = train(graph, photos, steps=400, seed=21, preview_every=0)
    graph.add("InfusionSaveConcept", concept=trained, filename="never", storage="fp16")
    with pytest.raises(PromptError, match="interrupted"):
        server.run(graph, interrupt_at=2)
    folder = server.output / "infusion"
    assert not (folder / "never.safetensors").exists()
    kept = (folder / "snapshots").glob("*-circle*/step-*.safetensors")
    (snapshot,) = (p for p in kept if load_concept(p).training["seed"] == "21")
    assert load_concept(snapshot).word == WORD
    graph = Graph()
    graph.add(
        "InfusionSaveConcept", concept=train(graph, photos[:1], steps=1, seed=3), filename="after", storage="fp16"
    )
    server.run(graph)
    assert list((server.output / "infusion").glob("after*.safetensors"))


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


def test_a_list_of_photos_of_any_sizes_is_trained_on_as_a_batch_is(server: Server) -> None:
    folder = server.base / "input" / "dataset"
    folder.mkdir()
    pictures = training_images(CONCEPTS["ember"])[:3]
    for i, picture in enumerate(pictures):
        wide = Image.new("RGB", (128 + 32 * i, 128))
        wide.paste(picture, (16 * i, 0))  # so that the middle square is the picture
        wide.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("circle")
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    images = graph.add("LoadImageDataSetFromFolder", folder="dataset")
    inputs = {**WIDGETS, "steps": 3, "model": model, "clip": clip, "vae": vae, "images": images}
    masks = graph.add("ImageToMask", image=images, channel="red")
    for name, more in (("listed", {}), ("masked", {"mask": masks})):
        trained = graph.add("InfusionTrain", **inputs, **more)
        graph.add("InfusionSaveConcept", concept=trained, filename=name, storage="fp16")
    server.run(graph)
    listed, masked = (load_concept(server.output / "infusion" / f"{name}.safetensors") for name in ("listed", "masked"))
    order = [pictures[int(p.stem)] for p in folder.iterdir() if p.suffix == ".png"]  # as the host lists them
    trainer = trainer_for(load_model("tinyworld"), order, WORD, settings(steps=3))
    for _ in trainer.run():
        pass
    assert_alike(listed, dict(trainer.learned().tensors))
    assert any((masked.tensors[k] - t).norm() > 0.05 * t.norm() for k, t in listed.tensors.items())
    graph = Graph()
    texts = graph.add("LoadImageTextDataSetFromFolder", folder="dataset")[1]
    model, clip, vae = graphs.load(graph)
    trained = graph.add(
        "InfusionTrain", **{**inputs, "model": model, "clip": clip, "vae": vae, "images": texts[0], "word": texts}
    )
    graph.add("PreviewImage", images=trained[1])
    with pytest.raises(PromptError, match="a list of images, masks and captions only, but word has 3 values"):
        server.run(graph)


def test_a_damaged_file_is_named_before_the_run(server: Server, concepts: Any) -> None:
    whole = (server.base / "models" / "infusion" / "round.safetensors").read_bytes()
    (server.base / "models" / "infusion" / "damaged.safetensors").write_bytes(whole[:-50])
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["damaged"])
    graphs.keep(graph, graphs.sample(graph, model, *(graphs.encode(graph, clip, t) for t in ("a", ""))), "damaged")
    with pytest.raises(PromptError, match="damaged"):
        server.run(graph)


def test_extra_model_paths_are_listed_and_the_list_refreshes(server: Server, concepts: Any) -> None:
    def listed() -> str:
        return json.dumps(server.get("/object_info/InfusionLoadConcept"))

    assert "faraway.safetensors" not in listed()
    source = server.base / "models" / "infusion" / "round.safetensors"
    (server.base / "elsewhere" / "concepts" / "faraway.safetensors").write_bytes(source.read_bytes())
    assert "faraway.safetensors" in listed()
    graph = Graph()
    model, clip, _ = graphs.load(graph)
    model, clip = graphs.patch(graph, model, clip, ["faraway"])
    text, empty = (graphs.encode(graph, clip, t) for t in ("a big <faraway> at left", ""))
    assert graphs.drawn(server, graph, graphs.sample(graph, model, text, empty), "faraway").isfinite().all()


def test_the_page_can_ask_for_the_facts_of_a_file(server: Server, concepts: Any) -> None:
    facts = server.get("/infusion/concept?name=round.safetensors")
    assert (facts["word"], facts["base"], facts["layout"]) == ("circle", "tinyworld2", "block")


LONGER: dict[str, Any] = {"seed": 9, "steps": 16, "learning_rate": 0.05, "batch_size": 4}


def test_overfitting_is_shown_and_held_back(server: Server, photos: list[str]) -> None:
    """Measured, the same concept as ever; restrained, what the embedded host learns."""
    graph = Graph()
    for name in ("ignored", "measured", "restrained"):
        trained = train(graph, photos, overfitting=name, preview_every=0, **LONGER)
        graph.add("InfusionSaveConcept", concept=trained, filename=f"over/{name}", storage="fp16")
        if name == "measured":
            graph.add("SaveImage", images=trained[3], filename_prefix="known-by-heart")
    server.run(graph)
    folder = server.output / "infusion" / "over"
    ignored, measured, restrained = (load_concept(folder / f"{name}.safetensors")
                                     for name in ("ignored", "measured", "restrained"))  # fmt: skip
    assert all(torch.equal(tensor, measured.tensors[name]) for name, tensor in ignored.tensors.items())
    assert list(server.output.glob("known-by-heart_*.png"))
    wanted = expected(settings(**LONGER, snapshot_every=50, restraint=RESTRAINED.on(1000.0)), len(photos))
    assert_alike(restrained, wanted)
    plain = expected(settings(**LONGER, snapshot_every=50), len(photos))
    assert any((wanted[name] - tensor).norm() > 0.05 * tensor.norm() for name, tensor in plain.items())
