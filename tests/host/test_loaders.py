"""Loading one concept, several, and snapshots of a run; what a run leaves and what of it stays."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from comfyui_process.graph import Graph, Output, PromptError, Ran
from comfyui_process.server import Server
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.residuals import ConceptResidual

from . import graphs
from .conftest import residual
from .learning import WORD, train

RUN = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-circle(-\d+)?")


def rows(*files: tuple[str, float]) -> dict[str, Any]:
    """The widgets of Load Concept Residuals."""
    pairs = enumerate(files, 1)
    widgets = {f"concepts.{k}_{i}": v for i, row in pairs for k, v in zip(("concept", "strength"), row, strict=True)}
    return {"concepts": str(len(files)), **widgets}


def shown(server: Server, graph: Graph, *outputs: Output) -> tuple[list[str], Ran]:
    """Run a graph and return STRING outputs."""
    seen = [graph.add("PreviewAny", source=output) for output in outputs]
    ran = server.run(graph)
    return [ran.outputs[s.node]["text"][0] for s in seen], ran


def test_several_in_one_node_are_a_chain_of_loaders(server: Server, concepts: Any) -> None:
    def latent(name: str, several: bool) -> Any:
        graph = Graph()
        model, clip, _ = graphs.load(graph)
        first = graph.add("InfusionLoadConcept", concept_name="peak.safetensors", strength=1.0)
        if several:
            files = (("layered.safetensors", 0.7), ("corner.safetensors", 1.0))
            concept = graph.add("InfusionLoadConcepts", previous=first, **rows(*files))
        else:
            first = graph.add("InfusionLoadConcept", concept_name="layered.safetensors", strength=0.7, previous=first)
            concept = graph.add("InfusionLoadConcept", concept_name="corner.safetensors", strength=1.0, previous=first)
        patched = graph.add("InfusionAttentionPatch", model=model, clip=clip, concept=concept, **graphs.PATCH)
        text = "a <layered> at left and a square at right"
        positive, negative = (graphs.encode(graph, patched[1], t) for t in (text, "gray"))
        return graphs.drawn(server, graph, graphs.sample(graph, patched[0], positive, negative), name)

    assert latent("chain", False).equal(latent("several", True))


def test_words_are_outputs(server: Server, concepts: Any, photos: list[str]) -> None:
    graph = Graph()
    one = graph.add("InfusionLoadConcept", concept_name="round.safetensors", strength=1.0)
    more = graph.add("InfusionLoadConcepts", previous=one, **rows(("corner.safetensors", 1), ("peak.safetensors", 0.5)))
    trained = train(graph, photos[:1], steps=1, word=" circle ", preview_every=0)
    words, ran = shown(server, graph, one[1], more[1], trained[2])
    assert words == ["circle", "circle, square, triangle", "circle"]
    (told,) = ran.outputs[more.node]["text"]
    assert told.splitlines()[2].startswith("peak: 'triangle' for tinyworld2, ")
    assert told.endswith("strength 0.5")


def test_a_gone_file_is_named_by_the_several_loader(server: Server, concepts: Any) -> None:
    graph = Graph()
    several = graph.add("InfusionLoadConcepts", **rows(("round.safetensors", 1), ("gone.safetensors", 1)))
    with pytest.raises(PromptError, match=r"gone\.safetensors"):
        shown(server, graph, several[1])


@pytest.mark.parametrize("node", ["InfusionLoadConcept", "InfusionLoadConcepts"])
def test_content_not_dates_decides_whether_a_file_is_read_again(server: Server, concepts: Any, node: str) -> None:
    path = server.base / "models" / "infusion" / f"dated-{node}.safetensors"
    save_concept(path, residual("circle", 1))
    one = {"concept_name": path.name, "strength": 1.0}

    def word() -> tuple[str, bool]:
        graph = Graph()
        inputs = one if node == "InfusionLoadConcept" else rows((path.name, 1.0), ("corner.safetensors", 1.0))
        loader = graph.add(node, **inputs)
        (text,), ran = shown(server, graph, loader[1])
        read = any(m["type"] == "executing" and m["data"]["node"] == loader.node for m in ran.messages)
        return text.split(",")[0], read

    assert word() == ("circle", True)
    path.touch()
    assert word() == ("circle", False)
    before = path.stat()
    save_concept(path, residual("triangle", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert word() == ("triangle", True)


def runs(server: Server) -> list[Path]:
    folder = server.output / "infusion" / "snapshots"
    return sorted(p for p in folder.iterdir() if RUN.fullmatch(p.name)) if folder.is_dir() else []


def train_once(server: Server, photos: list[str], **changed: Any) -> Path:
    """The folder that a run of its own leaves."""
    before = set(runs(server))
    graph = Graph()
    widgets = {"steps": 2, "preview_every": 1, **changed}
    shown(server, graph, train(graph, photos[:1], **widgets)[2])
    (made,) = set(runs(server)) - before
    return made


def test_a_run_leaves_a_folder_that_is_no_concept(server: Server, photos: list[str]) -> None:
    first, second = train_once(server, photos, seed=31), train_once(server, photos, seed=32)
    for folder, seed in ((first, "31"), (second, "32")):
        kept = [f"step-0000{step}.{kind}" for step in (1, 2) for kind in ("png", "safetensors")]
        assert [p.name for p in sorted(folder.iterdir())] == kept
        assert load_concept(folder / "step-00002.safetensors").training["seed"] == seed
    assert "step-0000" not in json.dumps(server.get("/object_info/InfusionLoadConcept"))
    listed = server.get("/object_info/InfusionLoadSnapshot")["InfusionLoadSnapshot"]["input"]["required"]["snapshot"]
    names = listed[1]["options"]
    assert names.index(f"{second.name}/step-00002") == 0
    assert names.index(f"{second.name}/step-00001") == 1
    assert names.index(f"{first.name}/step-00002") == 2


def test_a_link_to_nothing_among_the_snapshots_is_left_out(server: Server, concepts: Any) -> None:
    run = server.output / "infusion" / "snapshots" / "2001-02-03_04-05-06-dangling"
    run.mkdir(parents=True)
    (run / "step-00050.safetensors").symlink_to(server.base / "nowhere")
    told = json.dumps([server.get(f"/object_info/InfusionLoadConcept{end}") for end in ("", "s")])
    shutil.rmtree(run)
    assert told.count("round.safetensors") >= 2
    assert "dangling" not in told


def test_of_two_runs_in_one_second_the_later_is_listed_first(server: Server, concepts: Any) -> None:
    runs = [server.output / "infusion" / "snapshots" / f"2001-02-03_04-05-06-circle{end}" for end in ("", "-2")]
    for run in runs:
        run.mkdir(parents=True)
        for step in (1, 2):
            save_concept(run / f"step-{step:05d}.safetensors", concepts["round"])
    listed = server.get("/object_info/InfusionLoadSnapshot")["InfusionLoadSnapshot"]["input"]["required"]["snapshot"]
    ours = [name for name in listed[1]["options"] if name.startswith("2001")]
    for run in runs:
        shutil.rmtree(run)
    assert ours == [f"{run.name}/step-{step:05d}" for run in reversed(runs) for step in (2, 1)]


def test_training_goes_on_from_a_snapshot(server: Server, photos: list[str]) -> None:
    folder = train_once(server, photos, seed=33)
    start = load_concept(folder / "step-00001.safetensors")
    graph = Graph()
    snapshot = graph.add("InfusionLoadSnapshot", snapshot=f"{folder.name}/step-00001", strength=1.0)
    more = {"steps": 1, "seed": 34, "preview_every": 0, "learning_rate": 1e-5, "continue_from": snapshot}
    longer = train(graph, photos[:1], **more)
    graph.add("InfusionSaveConcept", concept=longer, filename="from-snapshot", storage="fp16")
    (word,), _ = shown(server, graph, snapshot[1])
    assert word == WORD
    learned = load_concept(server.output / "infusion" / "from-snapshot.safetensors")
    assert any(t.abs().max() > 1e-3 for t in start.tensors.values())
    assert all((learned.tensors[k] - t).norm() < 0.05 * t.norm() + 1e-3 for k, t in start.tensors.items())
    graph = Graph()
    gone = graph.add("InfusionLoadSnapshot", snapshot=f"{folder.name}/step-00009", strength=1.0)
    with pytest.raises(PromptError, match=r"there is no snapshot .*step-00009"):
        shown(server, graph, gone[1])
    for name in ("../from-snapshot", "a\0b"):
        graph = Graph()
        outside = graph.add("InfusionLoadSnapshot", snapshot=name, strength=1.0)
        with pytest.raises(PromptError, match="there is no snapshot"):
            shown(server, graph, outside[1])


def test_the_newest_runs_stay_and_what_is_the_users_is_never_touched(
    server: Server, photos: list[str], concepts: dict[str, ConceptResidual]
) -> None:
    folder = server.output / "infusion" / "snapshots"

    def old(name: str, *files: str) -> Path:
        made = folder / name
        made.mkdir(parents=True)
        for file in files:
            save_concept(made / file, concepts["round"])
        return made

    ours = [old(f"2001-01-0{day}_10-00-00-cat", "step-00050.safetensors") for day in range(1, 6)]
    renamed = old("my favourite", "step-00050.safetensors")
    theirs = old("2001-01-01_09-00-00-cat", "step-00050.safetensors", "mine.safetensors")
    deeper = old("2001-01-01_08-00-00-cat", "step-00050.safetensors")
    (deeper / "more").mkdir()
    linked = folder / "2001-01-01_07-00-00-cat"
    linked.symlink_to(renamed, target_is_directory=True)
    flat = folder / "cat-step-00050.safetensors"
    save_concept(flat, concepts["round"])
    newest = train_once(server, photos, seed=35)
    train_once(server, photos, seed=36)
    assert len(runs(server)) + sum(p.exists() for p in ours) == 5
    assert newest.is_dir()
    assert not ours[0].exists()
    assert all((p / "step-00050.safetensors").is_file() for p in (renamed, theirs, deeper, linked))
    assert flat.is_file()
    listed = json.dumps(server.get("/object_info/InfusionLoadSnapshot"))
    assert "my favourite/step-00050" in listed
    assert "cat-step-00050" in listed
