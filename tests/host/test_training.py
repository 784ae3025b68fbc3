"""Infusion Train, save, load, patch, sample: in the real host, against the embedded trainer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.previews import read_strip
from infusion_core.residual_file import load_concept
from infusion_core.training.overfitting import RESTRAINED

from . import graphs
from .learning import WIDGETS, WORD, assert_alike, expected, settings, train


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
