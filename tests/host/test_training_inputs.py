"""What Infusion Train takes beside photos: their own captions, mirrored ones, less memory, a level to end at."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.subject import SubjectPhotos, load_subject
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import load_concept
from infusion_core.training.overfitting import OVERFITTING, Overfitting

from . import graphs
from .learning import WIDGETS, WORD, assert_alike, expected, settings, train


def captioned_folder(server: Server, name: str) -> list[Image.Image]:
    folder = server.base / "input" / name
    folder.mkdir()
    pictures = training_images(CONCEPTS["ember"])[:3]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a {} on pink\na big circle at left")
    (folder / "2.txt").write_text("one {}")
    return pictures


CAPTIONS = (("a {} on pink", "a big circle at left"), (), ("one {}",))


def test_captions_beside_photos_are_said_of_their_photos_alone(server: Server) -> None:
    pictures = captioned_folder(server, "captioned")
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    loaded = graph.add("InfusionLoadPhotos", folder="captioned", photos="", resolution=128, crop="center")
    inputs = {**WIDGETS, "model": model, "clip": clip, "vae": vae, "images": loaded}
    trained = graph.add("InfusionTrain", **{**inputs, "captions": loaded[3]})
    graph.add("InfusionSaveConcept", concept=trained, filename="captioned", storage="fp16")
    ran = server.run(graph)
    assert ran.outputs[loaded.node]["text"] == ["3 photos: 0.png, 1.png, 2.png\n2 with captions: 0.png, 2.png"]
    photos = SubjectPhotos(tuple(pictures), CAPTIONS, (None,) * 3, ("0", "1", "2"))
    trainer = trainer_for(load_model("tinyworld"), photos, WORD, settings())
    for _ in trainer.run():
        pass
    wanted = dict(trainer.learned().tensors)
    assert_alike(load_concept(server.output / "infusion" / "captioned.safetensors"), wanted)
    plain = expected(settings(), 3)
    assert any((wanted[name] - tensor).norm() > 0.05 * tensor.norm() for name, tensor in plain.items())
    (server.base / "input" / "captioned" / "2.txt").write_text("a square")
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    loaded = graph.add("InfusionLoadPhotos", folder="captioned", photos="", resolution=128, crop="center")
    inputs |= {"model": model, "clip": clip, "vae": vae, "images": loaded, "captions": loaded[3]}
    graph.add("PreviewImage", images=graph.add("InfusionTrain", **inputs)[1])
    with pytest.raises(PromptError, match=r"a caption of photo 3, 'a square', says neither \{\} nor 'circle'"):
        server.run(graph)
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    inputs |= {"model": model, "clip": clip, "vae": vae, "images": graphs.images(graph, ["captioned/0.png"] * 2)}
    loaded = graph.add("InfusionLoadPhotos", folder="captioned", photos="", resolution=128, crop="center")
    graph.add("PreviewImage", images=graph.add("InfusionTrain", **{**inputs, "captions": loaded[3]})[1])
    with pytest.raises(PromptError, match="3 captions for 2 photos"):
        server.run(graph)


def test_training_ends_at_a_level_of_overfitting(server: Server, photos: list[str]) -> None:
    graph = Graph()
    asked = {"overfitting": "measured", "stop_at": 0.05, "steps": 200, "learning_rate": 0.1, "seed": 41}
    graph.add("InfusionSaveConcept", concept=train(graph, photos, **asked), filename="early", storage="fp16")
    ran = server.run(graph)
    steps = int(load_concept(server.output / "infusion" / "early.safetensors").training["steps"])
    assert 1 < steps < 200
    assert f"ended at step {steps} of 200: overfitted 0.05 (stop_at)" in ran.texts
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos, stop_at=0.5)[1])
    with pytest.raises(PromptError, match="stop_at needs to know how overfitted the run is"):
        server.run(graph)


def test_flipped_photos_are_shown_as_well(server: Server, photos: list[str]) -> None:
    graph = Graph()
    trained = train(graph, photos, flip=True, preview_every=0)
    graph.add("InfusionSaveConcept", concept=trained, filename="mirrored", storage="fp16")
    server.run(graph)
    learned = load_concept(server.output / "infusion" / "mirrored.safetensors")
    assert learned.training["images"] == "3"
    pictures = SubjectPhotos.of(training_images(CONCEPTS["ember"])[:3]).with_mirrored()
    trainer = trainer_for(load_model("tinyworld"), pictures, WORD, settings(snapshot_every=50))
    for _ in trainer.run():
        pass
    assert_alike(learned, dict(trainer.learned().tensors))


@pytest.mark.parametrize("layout", ["block", "value", "parts"])
def test_with_less_memory_the_same_bits_are_learned(server: Server, photos: list[str], layout: str) -> None:
    graph = Graph()
    for name, more in (("kept", {}), ("again", {"checkpointing": True})):
        asked = {"layout": layout, "accumulation": 2, "steps": 3, "preview_every": 0, "seed": 61, **more}
        graph.add("InfusionSaveConcept", concept=train(graph, photos, **asked), filename=f"less/{layout}-{name}",
                  storage="fp16")  # fmt: skip
    server.run(graph)
    kept, again = (load_concept(server.output / "infusion" / "less" / f"{layout}-{n}.safetensors")
                   for n in ("kept", "again"))  # fmt: skip
    assert kept.training["batch"] == "4"
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in kept.tensors.items())
    assert_alike(kept, expected(settings(layout=layout, accumulation=2, steps=3, seed=61), len(photos)))


@pytest.mark.parametrize("overfitting", ["ignored", "restrained"])
def test_photos_in_half_precision_are_learned_as_others_are(
    server: Server, photos: list[str], overfitting: Overfitting
) -> None:
    asked = {"steps": 4, "seed": 62, "learning_rate": 0.05}
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    white = graph.add("SolidMask", value=1.0, width=128, height=128)
    half = graph.add("TestInHalf", images=graphs.images(graph, photos), mask=white)
    masked = {"mask": half[1]} if overfitting == "ignored" else {}
    inputs = {**WIDGETS, **asked, **masked, "overfitting": overfitting}
    trained = graph.add("InfusionTrain", model=model, clip=clip, vae=vae, images=half[0], **inputs)
    graph.add("InfusionSaveConcept", concept=trained, filename=f"half-{overfitting}", storage="fp16")
    server.run(graph)
    learned = load_concept(server.output / "infusion" / f"half-{overfitting}.safetensors")
    assert_alike(learned, expected(settings(**asked, restraint=OVERFITTING[overfitting]), len(photos)))


SHAPES = ((176, 80), (128, 128), (80, 192), (352, 160))  # the hosts crop by other fractions of a pixel: nothing to crop


def test_photos_keep_their_shape_as_in_the_embedded_host(server: Server) -> None:
    """Whole photos of three shapes, one of them cut out: sizes, masks, draws and captions are the other host's."""
    folder = server.base / "input" / "shapes"
    folder.mkdir()
    pictures = training_images(CONCEPTS["ember"])[:4]
    for i, (picture, size) in enumerate(zip(pictures, SHAPES, strict=True)):
        picture.resize(size).save(folder / f"{i}.png")
    clear = Image.new("L", SHAPES[2], 0)
    clear.paste(255, (0, 0, 80, 120))
    tall = Image.open(folder / "2.png")
    tall.putalpha(clear)
    tall.save(folder / "2.png")
    (folder / "2.txt").write_text("a big {} at left")

    def learned(crop: str, of_photos: str) -> dict[str, torch.Tensor]:
        graph = Graph()
        model, clip, vae = graphs.load(graph)
        loaded = graph.add("InfusionLoadPhotos", folder="shapes", photos="", resolution=128, crop=of_photos)
        inputs = {**WIDGETS, "model": model, "clip": clip, "vae": vae, "images": loaded, "mask": loaded[1]}
        trained = graph.add("InfusionTrain", **{**inputs, "captions": loaded[3]}, crop=crop, flip=True)
        graph.add("InfusionSaveConcept", concept=trained, filename=f"shapes-{of_photos}", storage="fp16")
        server.run(graph)
        return dict(load_concept(server.output / "infusion" / f"shapes-{of_photos}.safetensors").tensors)

    kept = learned("keep shape", "whole")
    photos = load_subject(folder, 128, [], aspect=True).with_mirrored()
    trainer = trainer_for(load_model("tinyworld"), photos, WORD, settings(), aspect=True)
    assert len(trainer.objective.members) == 3  # type: ignore[attr-defined]
    for _ in trainer.run():
        pass
    assert_alike(load_concept(server.output / "infusion" / "shapes-whole.safetensors"), dict(trainer.learned().tensors))
    squares = learned("center square", "center")
    assert any((kept[name] - tensor).norm() > 0.1 * tensor.norm() for name, tensor in squares.items())
