"""Infusion Train Many: a folder of folders, several concepts in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfyui_process.graph import Graph, PromptError, Ran
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.subject import load_subject
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import load_concept
from infusion_core.training.residual import ResidualSettings

from . import graphs

WIDGETS = {"steps": 4, "batch_size": 2, "learning_rate": 0.02, "layout": "block", "bins": 1, "resolution": 128,
           "seed": 5, "together": 3, "word": "", "accumulation": 1, "save_in": "many"}  # fmt: skip
SUBJECTS = {"ember": "circle", "wasp": "square", "frost": "triangle"}


def write(place: Path) -> None:
    """A folder of photos for each subject."""
    for number, (name, word) in enumerate(SUBJECTS.items()):
        folder = place / name
        folder.mkdir(parents=True)
        for i, picture in enumerate(training_images(list(CONCEPTS.values())[number])[: 2 + number]):
            picture.save(folder / f"{i}.png")
        (folder / "word.txt").write_text(word)


def run(server: Server, folder: str, lora: bool = False, **changed: Any) -> tuple[list[str], Ran]:
    """A line on each folder, and all that was sent; `lora`: on a MODEL with one."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    if lora:
        model = graph.add("LoraLoaderModelOnly", model=model, lora_name="test.safetensors", strength_model=1.0)
    many = graph.add("InfusionTrainMany", model=model, clip=clip, vae=vae, folder=folder, **{**WIDGETS, **changed})
    ran = server.run(graph)
    return ran.outputs[many.node]["text"][0].splitlines(), ran


def alone(folder: Path, word: str) -> dict[str, Any]:
    """What the embedded host learns from the same folder in a run of its own."""
    settings = ResidualSettings(steps=4, batch_size=2, learning_rate=0.02, layout="block", bins=1, seed=5)
    trainer = trainer_for(load_model("tinyworld"), load_subject(folder, 128, []), word, settings)
    for _ in trainer.run():
        pass
    return dict(trainer.learned().tensors)


def test_together_each_learns_what_it_learns_alone(server: Server) -> None:
    place = server.base / "input" / "zoo"
    write(place)
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "photo.png").write_bytes(b"no picture")
    lines, _ = run(server, "zoo")
    assert [line for line in lines if line.endswith(": trained")] == [
        "ember (circle): trained", "frost (triangle): trained", "wasp (square): trained",
    ]  # fmt: skip
    told = {line.split(":")[0]: line for line in lines}
    assert "there are no photos in" in told["empty"]
    assert "none of 1 files can be used: photo.png" in told["broken (broken)"]
    out = server.output / "infusion" / "many"
    assert sorted(path.name for path in out.glob("*.safetensors")) == [f"{n}.safetensors" for n in sorted(SUBJECTS)]
    for number, name in enumerate(SUBJECTS):
        learned, wanted = load_concept(out / f"{name}.safetensors"), alone(place / name, SUBJECTS[name])
        assert learned.word == SUBJECTS[name]
        assert learned.training["images"] == str(2 + number)
        assert learned.thumbnail
        for key, tensor in wanted.items():
            assert tensor.abs().max() > 0.01
            assert (learned.tensors[key] - tensor).norm() < 0.02 * tensor.norm(), (name, key)


def test_what_is_transparent_is_not_learned(server: Server) -> None:
    place, learned = server.base / "input" / "cut", {}
    for name, opaque in (("whole", 255), ("half", 0)):
        (place / name).mkdir(parents=True)
        for i, picture in enumerate(training_images(CONCEPTS["ember"])[:2]):
            alpha = Image.new("L", picture.size, 255)
            alpha.paste(opaque, (0, 0, picture.width // 2, picture.height))
            picture.putalpha(alpha)
            picture.save(place / name / f"{i}.png")
    run(server, "cut", save_in="cut", word="circle")
    for name in ("whole", "half"):
        learned[name] = load_concept(server.output / "infusion" / "cut" / f"{name}.safetensors").tensors
        for key, tensor in alone(place / name, "circle").items():
            assert (learned[name][key] - tensor).norm() < 0.02 * tensor.norm(), (name, key)
    assert all((t - learned["whole"][k]).norm() > 0.2 * t.norm() for k, t in learned["half"].items())


def test_a_second_run_learns_only_what_is_new(server: Server) -> None:
    place, out = server.base / "input" / "again", server.output / "infusion" / "second"
    write(place)
    assert all(line.endswith(": trained") for line in run(server, "again", save_in="second", together=2)[0])
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (place / "frost" / ".DS_Store").write_bytes(b"no photo")
    lines, ran = run(server, "again", save_in="second")
    assert all(line.endswith(": already there") for line in lines)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not [m for m in ran.messages if m["type"] == "progress"]
    (place / "wasp" / "word.txt").write_text("circle")
    (out / "frost.safetensors").unlink()
    lines, _ = run(server, "again", save_in="second")
    assert lines == ["ember (circle): already there", "frost (triangle): trained", "wasp (circle): trained"]
    assert load_concept(out / "wasp.safetensors").word == "circle"
    lines, _ = run(server, "again", save_in="second", seed=6)
    assert all(line.endswith(": trained") for line in lines)


def test_an_unchanged_queue_does_nothing_and_a_lost_file_or_a_failure_does(server: Server) -> None:
    place, out = server.base / "input" / "unchanged", server.output / "infusion" / "unchanged"
    write(place)
    (place / "empty").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "photo.png").write_bytes(b"no picture")

    def again() -> dict[str, str] | None:
        """What came of each folder; None where the host took the last run's."""
        lines, ran = run(server, "unchanged", save_in="unchanged", steps=1)
        runs = any(m["type"] == "executing" and m["data"]["node"] == "2" for m in ran.messages)
        became = {line.split(" ")[0]: line.split(": ")[1] for line in lines if line.split(" ")[0] in SUBJECTS}
        return became if runs else None

    assert again() == dict.fromkeys(SUBJECTS, "trained")
    assert again() is None
    (out / "frost.safetensors").unlink()
    assert again() == {"ember": "already there", "wasp": "already there", "frost": "trained"}
    assert again() is None
    (out / "wasp.report.json").unlink()
    (place / "wasp" / "word.txt").write_text("circle")
    for _ in range(2):
        assert again() == {"ember": "already there", "wasp": "failed", "frost": "already there"}
    (out / "wasp.safetensors").unlink()
    assert again() == {"ember": "already there", "wasp": "trained", "frost": "already there"}
    assert again() is None


def test_a_linked_folder_is_learned_once(server: Server) -> None:
    write(server.base / "input" / "linked")

    def runs() -> bool:
        graph = Graph()
        model, clip, vae = graphs.load(graph)
        linked = graph.add("PrimitiveString", value="linked")
        given = {**WIDGETS, "steps": 1, "save_in": "linked"}
        many = graph.add("InfusionTrainMany", model=model, clip=clip, vae=vae, folder=linked, **given)
        ran = server.run(graph)
        return any(m["type"] == "executing" and m["data"]["node"] == many.node for m in ran.messages)

    assert runs()
    assert not runs()


def test_a_run_that_is_too_large_makes_room_for_each_alone(server: Server) -> None:
    write(server.base / "input" / "short")
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    found = graph.add("TestShortOfMemory", model=model, clip=clip, vae=vae, folder="short")
    shown = graph.add("PreviewAny", source=found)
    told = json.loads(server.run(graph).outputs[shown.node]["text"][0])
    assert told["told"].count(": trained") == 3
    assert told["there"] == [[False, False]] * 6  # two steps of each
    assert "What was written so far is kept; each of 2 alone now" in server.log.read_text()


def test_an_interrupt_keeps_what_is_done(server: Server) -> None:
    write(server.base / "input" / "stopped")
    with pytest.raises(PromptError, match="interrupted"):
        run_until(server, "stopped", 12)
    lines, _ = run(server, "stopped", save_in="stopped", together=1, steps=10)
    assert "ember (circle): already there" in lines
    assert "wasp (square): trained" in lines


def run_until(server: Server, folder: str, step: int) -> None:
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    widgets = {**WIDGETS, "save_in": folder, "together": 1, "steps": 10}
    graph.add("InfusionTrainMany", model=model, clip=clip, vae=vae, folder=folder, **widgets)
    server.run(graph, interrupt_at=step)


REPORTS = {
    "nothing": None,
    "the terminal's": {"concept_error": 0.1, "seconds": 60.0},
    "train-many's": {"given": {"word": "circle", "steps": 1}, "word": "circle"},
    "a list": [],
}


@pytest.mark.parametrize("beside", REPORTS)
def test_concepts_of_others_are_not_overwritten(server: Server, beside: str) -> None:
    name = f"taken-{list(REPORTS).index(beside)}"
    write(server.base / "input" / name)
    out = server.output / "infusion" / name
    out.mkdir(parents=True)
    (out / "ember.safetensors").write_bytes(b"somebody's")
    if REPORTS[beside] is not None:
        (out / "ember.report.json").write_text(json.dumps(REPORTS[beside]))
    lines, _ = run(server, name, save_in=name, steps=1)
    assert (
        lines[0]
        == "ember (circle): failed: ember.safetensors is there and not this node's; rename the folder or the file"
    )
    assert (out / "ember.safetensors").read_bytes() == b"somebody's"
    assert json.loads((out / "wasp.report.json").read_text())["word"] == "square"


def test_no_concept_is_learned_that_loaders_would_not_open(server: Server) -> None:
    write(server.base / "input" / "hidden")
    other = server.base / "models" / "infusion" / "hidden" / "ember.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody's")
    lines, _ = run(server, "hidden", save_in="hidden", steps=1)
    other.unlink()
    assert lines[0].startswith("ember (circle): failed: another model folder has hidden/ember.safetensors")
    assert [line.split(" ")[-1] for line in lines[1:]] == ["trained", "trained"]
    assert run(server, "hidden", save_in="hidden", steps=1)[0][0] == "ember (circle): trained"


@pytest.mark.usefixtures("lora")
def test_concepts_of_another_model_are_not_overwritten(server: Server) -> None:
    write(server.base / "input" / "based")
    run(server, "based", save_in="based", steps=1)
    out = server.output / "infusion" / "based"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(PromptError) as caught:  # nothing comes out
        run(server, "based", lora=True, save_in="based", steps=2)
    for name in SUBJECTS:
        assert f"failed: {name}.safetensors was learned on another model; write another folder" in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert all(line.endswith(": trained") for line in run(server, "based", lora=True, save_in="with-lora", steps=1)[0])


def test_of_a_folder_elsewhere_only_what_holds_photos_is_told(server: Server, tmp_path: Path) -> None:
    write(tmp_path / "far")
    (tmp_path / "far" / "secret").mkdir()
    (tmp_path / "far" / "secret" / "diary.txt").write_text("x")
    lines, _ = run(server, str(tmp_path / "far"), save_in="far", steps=1)
    assert [line.split(" ")[0] for line in lines] == sorted(SUBJECTS)
    for folder in (tmp_path / "far" / "secret", tmp_path / "nowhere"):
        with pytest.raises(PromptError, match="there is no folder with photos in"):
            run(server, str(folder))


@pytest.mark.parametrize("folder", ["", "../..", "nowhere", "a\0b"])
def test_a_folder_that_cannot_be(server: Server, folder: str) -> None:
    with pytest.raises(PromptError, match="folder"):
        run(server, folder)


def test_files_stay_below_the_output_folder(server: Server, photos: list[str]) -> None:
    write(server.base / "input" / "escape")
    for name in ("../escape", "a\0b", "a\nb"):
        with pytest.raises(PromptError, match="is not a file name below the output folder"):
            run(server, "escape", save_in=name)
    with pytest.raises(PromptError, match="is among the snapshots of training"):
        run(server, "escape", save_in="snapshots/x")
