"""APT Train in the real host: against the embedded trainer, through core's LoRA nodes, interrupted, with bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server
from infusion_core.captions import CAPTION_TEMPLATES, fill
from infusion_core.embedded.adapters import load_variant
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.model import load_model
from infusion_core.embedded.subject import SubjectPhotos
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.lora import UP
from infusion_core.training.apt import AptSettings
from infusion_core.training.overfitting import Restraint

from . import graphs
from .both import drawn, embedded
from .test_families import small
from .test_training_inputs import CAPTIONS, captioned_folder

WORD, PHOTOS = "circle", 3
WIDGETS: dict[str, Any] = {
    "identifier": "", "word": WORD, "steps": 6, "batch_size": 2, "accumulation": 1, "learning_rate": 0.01, "rank": 2,
    "alpha": 0.0, "targets": "attention", "text_rate": 0.0, "resolution": 128, "seed": 5, "preview_every": 3,
    "restrain": True, "augment": False, "reweight": True, "stabilisation": 0.2, "alignment": 0.3, "temperature": 50.0,
}  # fmt: skip


def train(graph: Graph, names: list[str], **changed: Any) -> Output:
    model, clip, vae = graphs.load(graph)
    inputs = {**WIDGETS, **changed}
    return graph.add("APTTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, names), **inputs)


def settings(**changed: Any) -> AptSettings:
    same = ("steps", "batch_size", "accumulation", "learning_rate", "rank", "targets", "text_rate", "seed",
            "stabilisation", "alignment")  # fmt: skip
    given = {**WIDGETS, **changed}
    asked = AptSettings(
        **{name: given[name] for name in same}, restraint=Restraint(
            measure=True, **{name: given[name] for name in ("augment", "reweight", "temperature")}
        ), snapshot_every=3, alpha=given["alpha"] or None,
    )  # fmt: skip
    return asked if given["restrain"] else asked.unrestrained


def expected(**changed: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """What the embedded host learns from the same pictures."""
    pictures = training_images(CONCEPTS["ember"])[:PHOTOS]
    trainer = apt_trainer(load_model("tinyworld"), pictures, fill(CAPTION_TEMPLATES, WORD), settings(**changed))
    with trainer.objective.lora.installed():  # type: ignore[attr-defined]
        for _ in trainer.run():
            pass
    return trainer.learned(), trainer.objective


def newest(server: Server) -> Any:
    """The last snapshot of the newest run."""
    runs = sorted((server.output / "loras" / "apt").iterdir(), key=lambda run: run.stat().st_mtime_ns)
    return sorted(runs[-1].glob("*.safetensors"))[-1]


def assert_alike(path: Any, wanted: dict[str, torch.Tensor]) -> None:
    with safe_open(path, "pt") as held:
        assert {k for k in held.keys() if not k.endswith(".alpha")} == wanted.keys()  # noqa: SIM118
        for name, tensor in wanted.items():
            if name.endswith(UP):
                assert tensor.abs().max() > 0.001, name
            assert (held.get_tensor(name).float() - tensor).norm() < 0.03 * tensor.norm(), name


CASES = [{}, {"restrain": False}, {"targets": "transformer", "alpha": 4.0}, {"text_rate": 0.5, "reweight": False}]


@pytest.mark.parametrize("changed", CASES)
def test_the_host_learns_what_the_embedded_host_learns(
    server: Server, photos: list[str], changed: dict[str, Any]
) -> None:
    graph = Graph()
    trained = train(graph, photos, **changed)
    graph.add("SaveImage", images=trained[3], filename_prefix="overfitting")
    graph.add("SaveImage", images=trained[4], filename_prefix="lora-loss")
    shown = graph.add("PreviewAny", source=trained[5])
    ran = server.run(graph)
    wanted, objective = expected(**changed)
    path = newest(server)
    assert path.name == "step-00006.safetensors"
    assert_alike(path, wanted)
    if changed.get("restrain", True):
        assert objective.indicator.gamma.max() > 0.01
    assert ran.outputs[shown.node]["text"] == [WORD]
    assert ran.previews >= 2
    with safe_open(path, "pt") as held:
        told = held.metadata()
    assert told["ss_network_dim"] == "2"
    assert told["ss_steps"] == "6"
    assert told["modelspec.trigger_phrase"] == WORD
    assert f"loras/{path.relative_to(server.output / 'loras').as_posix()}".startswith("loras/apt/")
    assert path.relative_to(server.output / "loras").as_posix() in json.dumps(server.get("/object_info/LoraLoader"))


def test_photos_keep_their_shape_as_in_the_embedded_host(server: Server) -> None:
    pictures, names = training_images(CONCEPTS["ember"])[:3], []
    shaped = [p.resize(size) for p, size in zip(pictures, [(176, 80), (128, 128), (80, 192)], strict=True)]
    for i, picture in enumerate(shaped):
        names.append(f"lora-shape-{i}.png")
        picture.save(server.base / "input" / names[-1])
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    loaded = graph.add("InfusionLoadPhotos", folder="", photos="\n".join(names), resolution=128, crop="whole")
    trained = graph.add(
        "APTTrain", model=model, clip=clip, vae=vae, images=loaded, **WIDGETS, crop="keep shape",
        preview_prompts="a {}\na {} on pink",
    )  # fmt: skip
    graph.add("PreviewImage", images=trained[6])
    server.run(graph)
    captions = fill(CAPTION_TEMPLATES, WORD)
    trainer = apt_trainer(load_model("tinyworld"), shaped, captions, settings(), aspect=True)
    assert len(trainer.objective.members) == 3  # type: ignore[attr-defined]
    with trainer.objective.members[0].lora.installed():  # type: ignore[attr-defined]
        for _ in trainer.run():
            pass
    assert_alike(newest(server), trainer.learned())


def test_every_way_to_use_the_lora_draws_one_picture(server: Server, photos: list[str]) -> None:
    """MODEL and CLIP of the node, core's Load LoRA on its file and on core's own, and the embedded host."""
    prompt, graph = f"a big {WORD} at left on pink", Graph()
    trained = train(graph, photos, text_rate=1.0)
    graph.add("SaveLoRA", lora=trained[2], prefix="loras/kept")
    direct = drawn(server, graph, trained[0], trained[1], prompt, "apt-direct")
    plain = Graph()
    model, clip, _ = graphs.load(plain)
    without = drawn(server, plain, model, clip, prompt, "apt-without")
    assert graphs.close(direct, without) > 0.05
    (saved,) = (server.output / "loras").glob("kept*.safetensors")
    for file in (newest(server), saved):
        use = Graph()
        model, clip, _ = graphs.load(use)
        name = file.relative_to(server.output / "loras").as_posix()
        loaded = use.add("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)
        assert graphs.close(drawn(server, use, loaded[0], loaded[1], prompt, "apt-file"), direct) < 1e-3
    variant = load_variant(str(newest(server)), load_model("tinyworld"))
    assert graphs.close(direct, embedded(server, prompt, [], model=variant)) < 2e-3


def test_training_goes_on_from_a_lora(server: Server, photos: list[str]) -> None:
    graph = Graph()
    first = train(graph, photos, steps=3, preview_every=0)
    model, clip, vae = graphs.load(graph)
    inputs = {**WIDGETS, "steps": 1, "learning_rate": 1e-7, "preview_every": 0}
    more = graph.add("APTTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, photos),
                     continue_from=first[2], **inputs)  # fmt: skip
    graph.add("SaveLoRA", lora=first[2], prefix="loras/one")
    graph.add("SaveLoRA", lora=more[2], prefix="loras/two")
    server.run(graph)
    (one,), (two,) = ((server.output / "loras").glob(f"{name}_*.safetensors") for name in ("one", "two"))
    with safe_open(one, "pt") as a, safe_open(two, "pt") as b:
        for name in a.keys():  # noqa: SIM118
            torch.testing.assert_close(a.get_tensor(name), b.get_tensor(name), atol=1e-4, rtol=1e-2)


def test_photos_are_augmented_and_class_pictures_count(server: Server, photos: list[str]) -> None:
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    prior = graphs.images(graph, photos[:2])
    mask = graph.add("SolidMask", value=1.0, width=128, height=128)
    made = [
        graph.add("APTTrain", model=model, clip=clip, vae=vae, images=graphs.images(graph, photos),
                  **{**WIDGETS, "augment": True, "preview_every": 0, **more})
        for more in ({}, {"prior_images": prior}, {"mask": mask})
    ]  # fmt: skip
    for number, one in enumerate(made):
        graph.add("SaveLoRA", lora=one[2], prefix=f"loras/variant{number}")
    server.run(graph)
    held = []
    for number in range(3):
        (path,) = (server.output / "loras").glob(f"variant{number}_*.safetensors")
        with safe_open(path, "pt") as opened:
            held.append({k: opened.get_tensor(k) for k in opened.keys()})  # noqa: SIM118
    assert any(not torch.equal(held[0][k], held[1][k]) for k in held[0])
    assert all(torch.equal(held[0][k], held[2][k]) for k in held[0])  # a mask of everything is no mask


def test_captions_and_a_level_to_end_at_are_the_embedded_hosts(server: Server) -> None:
    pictures = captioned_folder(server, "apt-captioned")
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    loaded = graph.add("InfusionLoadPhotos", folder="apt-captioned", photos="", resolution=128, crop="center")
    inputs = {**WIDGETS, "model": model, "clip": clip, "vae": vae, "images": loaded, "captions": loaded[3]}
    early = graph.add("APTTrain", **{**inputs, "steps": 60, "stop_at": 0.04, "seed": 77, "preview_every": 0})
    graph.add("PreviewImage", images=early[4])
    ran = server.run(graph)
    with safe_open(newest(server), "pt") as held:
        steps = int(held.metadata()["ss_steps"])
    assert steps < 60
    assert f"ended at step {steps} of 60: overfitted 0.04 (stop_at)" in ran.texts
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    loaded = graph.add("InfusionLoadPhotos", folder="apt-captioned", photos="", resolution=128, crop="center")
    inputs |= {"model": model, "clip": clip, "vae": vae, "images": loaded, "captions": loaded[3]}
    graph.add("PreviewImage", images=graph.add("APTTrain", **inputs)[4])
    server.run(graph)
    photos = SubjectPhotos(tuple(pictures), CAPTIONS, (None,) * 3, ("0", "1", "2"))
    trainer = apt_trainer(load_model("tinyworld"), photos, fill(CAPTION_TEMPLATES, WORD), settings(), phrase=WORD)
    with trainer.objective.lora.installed():  # type: ignore[attr-defined]
        for _ in trainer.run():
            pass
    assert_alike(newest(server), trainer.learned())


def test_with_less_memory_the_same_bits_are_learned(server: Server, photos: list[str]) -> None:
    graph = Graph()
    for name, more in (("kept", {}), ("again", {"checkpointing": True})):
        asked = {"steps": 2, "preview_every": 0, "seed": 62, "text_rate": 0.5, "augment": True, **more}
        graph.add("SaveLoRA", lora=train(graph, photos, **asked)[2], prefix=f"loras/less-{name}")
    server.run(graph)
    (one,), (two,) = ((server.output / "loras").glob(f"less-{name}_*.safetensors") for name in ("kept", "again"))
    with safe_open(one, "pt") as a, safe_open(two, "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"word": " "}, "the word is empty"),
        ({"captions": "a photo"}, "must hold {} once"),
        ({"resolution": 100}, "multiple of 8"),
    ],
)
def test_bad_input_is_one_sentence(server: Server, photos: list[str], changed: dict[str, Any], message: str) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos, **changed)[4])
    with pytest.raises(PromptError, match=message):
        server.run(graph)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_family_is_trained_with_its_text_encoders(server: Server, kind: str) -> None:
    """What the node's own MODEL and CLIP draw, the file makes core's loader draw, which knows every key."""
    log = server.base / "server.log"
    read, graph = len(log.read_text()), Graph()
    model, clip = small(graph, kind)
    _, _, vae = graphs.load(graph)
    image = graph.add("EmptyImage", width=64, height=64, batch_size=2, color=0x4080C0)
    inputs = {**WIDGETS, "identifier": "sks", "word": "teddy bear", "steps": 2, "resolution": 64, "text_rate": 1.0,
              "targets": "transformer", "preview_every": 0, "augment": True, "learning_rate": 0.02}  # fmt: skip
    trained = graph.add("APTTrain", model=model, clip=clip, vae=vae, images=image, **inputs)
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    text, negative = "a sks teddy bear", ""

    def drawn_by(of: Graph, model: Output, clip: Output, latent: Output, name: str) -> torch.Tensor:
        positive, other = graphs.encode(of, clip, text), graphs.encode(of, clip, negative)
        return graphs.drawn(server, of, graphs.sample(of, model, positive, other, latent=latent), name)

    direct = drawn_by(graph, trained[0], trained[1], latent, f"apt-{kind}")
    file = newest(server)
    use = Graph()
    model, clip = small(use, kind)
    latent = use.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    plain = drawn_by(use, model, clip, latent, f"apt-{kind}-plain")
    assert graphs.close(direct, plain) > 1e-3
    use = Graph()
    model, clip = small(use, kind)
    name = file.relative_to(server.output / "loras").as_posix()
    loaded = use.add("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)
    latent = use.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    assert graphs.close(drawn_by(use, loaded[0], loaded[1], latent, f"apt-{kind}-file"), direct) < 1e-3
    with safe_open(file, "pt") as held:
        names = set(held.keys())
    encoders = {"sd1": ("lora_te_",), "sd2": ("lora_te_",), "sdxl": ("lora_te1_", "lora_te2_")}[kind]
    assert all(any(name.startswith(encoder) for name in names) for encoder in encoders)
    assert "lora key not loaded" not in log.read_text()[read:]


def test_an_interrupt_leaves_a_snapshot(server: Server, photos: list[str]) -> None:
    graph = Graph()
    graph.add("PreviewImage", images=train(graph, photos, steps=500, preview_every=0)[4])
    with pytest.raises(PromptError, match="interrupted"):
        server.run(graph, interrupt_at=2)
    with safe_open(newest(server), "pt") as held:
        assert 2 <= int(held.metadata()["ss_steps"]) < 500
