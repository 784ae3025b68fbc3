"""Saving a concept: nothing is overwritten, and the loader opens what was saved."""

from __future__ import annotations

import json
from typing import Any

import pytest

from comfyui_process.graph import Graph, PromptError
from comfyui_process.server import Server
from infusion_core.residual_file import load_concept, save_concept
from infusion_core.residuals import ConceptResidual

from .learning import WORD, train


def save(server: Server, concept: str, filename: str) -> None:
    """Save a listed concept again."""
    graph = Graph()
    loaded = graph.add("InfusionLoadConcept", concept_name=f"{concept}.safetensors", strength=1.0)
    graph.add("InfusionSaveConcept", concept=loaded, filename=filename, storage="fp16")
    server.run(graph)


def test_saving_again_never_overwrites(server: Server, photos: list[str]) -> None:
    for seed in (1, 2):
        graph = Graph()
        trained = train(graph, photos[:1], steps=1, seed=seed)
        graph.add("InfusionSaveConcept", concept=trained, filename="twice", storage="fp16")
        server.run(graph)
    folder = server.output / "infusion"
    first, second = (load_concept(folder / f"{n}.safetensors") for n in ("twice", "twice-2"))
    assert first.training["seed"] == "1"
    assert second.training["seed"] == "2"


def test_one_name_from_many_threads_is_many_files(server: Server, concepts: Any) -> None:
    graph = Graph()
    loaded = graph.add("InfusionLoadConcept", concept_name="round.safetensors", strength=1.0)
    saved = graph.add("TestSaveTogether", concept=loaded, filename="together/cat")
    shown = graph.add("PreviewAny", source=saved)
    names = json.loads(server.run(graph).outputs[shown.node]["text"][0])
    assert sorted(names) == sorted(["cat.safetensors", *(f"cat-{n}.safetensors" for n in range(2, 17))])
    folder = server.output / "infusion" / "together"
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert all(load_concept(path).word == WORD for path in folder.iterdir())


@pytest.mark.parametrize(("place", "name"), [("models/infusion", "hidden"), ("elsewhere/concepts", "remote")])
def test_a_name_of_another_model_folder_is_not_taken(
    server: Server, concepts: dict[str, ConceptResidual], place: str, name: str
) -> None:
    """The loader would open that file."""
    save_concept(server.base / place / f"{name}.safetensors", concepts["peak"])
    save(server, "round", name)
    (saved,) = (server.output / "infusion").glob(f"{name}*.safetensors")
    assert saved.name == f"{name}-2.safetensors"
    assert load_concept(saved).word == "circle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../elsewhere", "not a file name below the output folder"),
        ("snapshots/kept", "'snapshots/kept' is among the snapshots of training; write a name such as"),
    ],
)
def test_a_file_name_cannot_leave_the_folder(server: Server, concepts: Any, name: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        save(server, "round", name)
