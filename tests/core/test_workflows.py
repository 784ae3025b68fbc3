"""The workflow files as files: every node says which pack it is of, no seed changes by itself, downloads are whole."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "example_workflows").glob("*.json"))
BLUEPRINTS = sorted((REPOSITORY / "subgraphs").glob("*.json"))
NAME = re.findall(r'^name = "(.+?)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[0]
each = pytest.mark.parametrize("path", EXAMPLES + BLUEPRINTS, ids=lambda p: p.stem)


def nodes(path: Path) -> Iterator[dict[str, Any]]:
    """All nodes of a workflow, within subgraphs too."""
    workflow = json.loads(path.read_text())
    yield from workflow["nodes"]
    for subgraph in workflow.get("definitions", {}).get("subgraphs", []):
        yield from subgraph["nodes"]


def test_there_are_seven_examples_and_two_blueprints() -> None:
    assert [path.stem[0] for path in EXAMPLES] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [path.stem for path in BLUEPRINTS] == ["Train a concept", "Use concepts"]


@each
def test_every_node_says_which_pack_it_is_of(path: Path) -> None:
    core = {"CheckpointLoaderSimple", "KSampler", "CLIPTextEncode", "MarkdownNote"}
    for node in nodes(path):
        pack = node["properties"]["cnr_id"]
        assert pack in (NAME, "comfy-core"), node["type"]
        assert (pack == NAME) if node["type"].startswith(("Infusion", "DreamBlend", "APT")) else True
        assert pack == "comfy-core" or node["type"] not in core
        assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])


@each
def test_no_seed_changes_by_itself(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r'"(randomize|increment|decrement)"', text)
    seeded = [n for n in nodes(path) if n["type"] in ("KSampler", "InfusionTrain", "InfusionOverfitMetrics")]
    assert all("fixed" in node["widgets_values"] for node in seeded)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_model_of_an_example_can_be_had(path: Path) -> None:
    notes = "".join(n["widgets_values"][0] for n in nodes(path) if n["type"] == "MarkdownNote")
    for node in nodes(path):
        if node["type"] in ("CheckpointLoaderSimple", "ControlNetLoader"):
            (model,) = node["properties"]["models"]
            assert node["widgets_values"] == [model["name"]]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert f"[{model['name']}]({model['url']})" in notes
            assert f"`models/{model['directory']}`" in notes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_a_thumbnail_is_a_jpeg_with_all_its_colour(path: Path) -> None:
    data = path.with_suffix(".jpg").read_bytes()
    assert len(data) < 80_000
    assert sampling(data) == [(1, 1)] * 3


def sampling(jpeg: bytes) -> list[tuple[int, int]]:
    """The sampling factors of a JPEG's components: all equal where no colour was thrown away."""
    at = 2
    while True:
        marker, length = struct.unpack(">HH", jpeg[at : at + 4])
        if marker in (0xFFC0, 0xFFC2):
            found = jpeg[at + 4 + 6 : at + 2 + length]
            return [divmod(factor, 16) for factor in found[1::3]]
        at += 2 + length
