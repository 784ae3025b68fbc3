"""Infusion Similarity in the real host, against transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from comfyui_process.graph import Graph, Output, PromptError
from comfyui_process.server import Server

from . import graphs


def vision_config(projection: int) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, projection_dim=projection, num_hidden_layers=3, num_attention_heads=2,
        image_size=224, patch_size=32, hidden_act="quick_gelu",
    )  # fmt: skip


def spread_out(network: Any) -> Any:
    """Random weights so large that different pictures get different embeddings."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    return network.eval()


@pytest.fixture(scope="module")
def eyes(server: Server) -> dict[int, Any]:
    """CLIP image encoders by the width of their embeddings, also in the host's input folder as vision-WIDTH."""
    made = {}
    torch.manual_seed(0)
    for width in (512, 1024):
        made[width] = spread_out(transformers.CLIPVisionModelWithProjection(vision_config(width)))
        folder = server.base / "input" / f"vision-{width}"
        made[width].save_pretrained(folder)
        vision_config(width).to_json_file(folder / "config.json", use_diff=False)
    return made


@pytest.fixture(scope="module")
def dino(server: Server) -> tuple[str, Any]:
    """A small vision transformer in a folder."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    network = spread_out(transformers.ViTModel(config, add_pooling_layer=False))
    network.save_pretrained(server.base / "dino")
    return str(server.base / "dino"), network


CLIP_COLOURS = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def prepared(pictures: Sequence[Image.Image], resize: int, colours: tuple[list[float], list[float]]) -> torch.Tensor:
    """Square pictures as an encoder wants them, by Pillow."""
    edge = (resize - 224) // 2
    scaled = [p.resize((resize, resize), Image.Resampling.BICUBIC).crop((edge, edge, edge + 224, edge + 224))
              for p in pictures]  # fmt: skip
    pixels = (np.stack([np.asarray(p, dtype=np.float32) for p in scaled]) / 255 - colours[0]) / colours[1]
    return torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)


@torch.no_grad()
def seen(network: Any, pictures: Sequence[Image.Image]) -> np.ndarray:
    found = network(prepared(pictures, 224, CLIP_COLOURS)).image_embeds.numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def similar(server: Server, generated: Sequence[int], reference: Sequence[int], build: Any = None, **inputs: Any):
    """clip_i, clip_t, dino and diversity, and the report; `build` adds nodes to the graph and returns inputs."""
    graph = Graph()
    if build:
        inputs |= build(graph)
    sides = [graphs.images(graph, [f"picture-{i}.png" for i in side]) for side in (generated, reference)]
    node = graph.add("InfusionSimilarity", generated=sides[0], reference=sides[1], **inputs)
    graph.add("SaveImage", images=node[1], filename_prefix="similarity")
    found, ran = graphs.floats(server, graph, [node[i] for i in range(2, 6)])
    return found, ran.outputs[node.node]["text"][0]


def eye(width: int) -> Any:
    return lambda graph: {"clip_vision": graph.add("TestVision", name=f"vision-{width}")}


def test_a_picture_is_like_itself(server: Server, pictures: Any, eyes: Any, dino: Any) -> None:
    (clip_i, clip_t, by_dino, diversity), _ = similar(server, [0], [0], eye(512), dino_folder=dino[0])
    assert (clip_i, by_dino) == pytest.approx((1, 1), abs=1e-6)
    assert math.isnan(clip_t)
    assert math.isnan(diversity)


def test_clip_i_and_diversity_are_those_of_transformers(server: Server, pictures: Any, eyes: Any) -> None:
    generated, reference = seen(eyes[1024], pictures[:3]), seen(eyes[1024], pictures[3:])
    (clip_i, _, _, diversity), report = similar(server, [0, 1, 2], [3], eye(1024))
    pairs = (generated @ generated.T)[np.triu_indices(3, 1)]
    assert (generated @ reference.T).mean() < 0.98  # the pictures differ
    assert clip_i == pytest.approx((generated @ reference.T).mean(), abs=5e-4)
    assert diversity == pytest.approx((1 - pairs).mean(), abs=5e-4)
    assert "this encoder gives 1024 numbers" in report
    assert "DINO: give the folder" in report
    assert "this encoder gives" not in similar(server, [0], [3], eye(512))[1]


def test_dino_is_that_of_transformers(server: Server, pictures: Any, dino: Any) -> None:
    with torch.no_grad():
        states = dino[1](prepared(pictures, 256, IMAGENET)).last_hidden_state[:, 0].numpy()
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    (clip_i, _, by_dino, _), report = similar(server, [0, 1], [2, 3], dino_folder=dino[0])
    # Pillow rounds what it resizes to whole steps of 1/255; the node does not.
    assert by_dino == pytest.approx((states[:2] @ states[2:].T).mean(), abs=2e-3)
    assert math.isnan(clip_i)
    assert "this is no ViT-S/16" in report
    assert "connect a CLIP_VISION" in report
    with pytest.raises(PromptError, match=r"holds no config\.json, so it is no DINO; give the folder of a local copy"):
        similar(server, [0], [1], dino_folder=str(server.base / "output"))


def test_clip_t_of_a_pair_is_the_cosine_with_the_projected_text(server: Server, pictures: Any, eyes: Any) -> None:
    prompts = ["a photo of a cat", "a red car in the rain"]

    def build(graph: Graph) -> dict[str, Output]:
        clip = graph.add("TestSmall", kind="sd2")[1]
        for i, prompt in enumerate(prompts):
            told = graph.add("TestPooled", text=graphs.encode(graph, clip, prompt), name=f"pooled-{i}")
            graph.add("PreviewAny", source=told)
        return {"clip": clip, **eye(1024)(graph)}

    (_, clip_t, _, diversity), report = similar(server, [0, 1], [2], build, prompt="\n".join(prompts))
    texts = np.concatenate([load_file(server.output / f"pooled-{i}.safetensors")["pooled"].numpy() for i in (0, 1)])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    assert clip_t == pytest.approx((seen(eyes[1024], pictures[:2]) * texts).sum(1).mean(), abs=5e-4)
    assert math.isnan(diversity)
    assert "diversity: diversity needs at least two pictures of a prompt" in report


@pytest.mark.parametrize(("kind", "sentence"), [
    ("tinyworld", "the CLIP has no text projection, so its texts lie in no space with pictures"),
    ("sdxl", "the CLIP's texts are 1280 numbers and the CLIP_VISION's pictures 1024, so they are no pair"),
])  # fmt: skip
def test_texts_of_another_space_are_told(server: Server, pictures: Any, eyes: Any, kind: str, sentence: str) -> None:
    def build(graph: Graph) -> dict[str, Output]:
        clip = graphs.load(graph)[1] if kind == "tinyworld" else graph.add("TestSmall", kind=kind)[1]
        return {"clip": clip, **eye(1024)(graph)}

    (clip_i, clip_t, _, _), report = similar(server, [0], [1], build, prompt="a circle")
    assert clip_i < 1
    assert math.isnan(clip_t)
    assert sentence in report
    with pytest.raises(PromptError, match="2 prompts for 1 pictures; write one line for all, or one line per picture"):
        similar(server, [0], [1], build, prompt="a circle\na square")


def test_masks_leave_the_subject_alone(server: Server, pictures: Any, eyes: Any, dino: Any) -> None:
    """The left half of one picture beside the right half of another: by mask the same subject, else not."""
    other = Image.fromarray(np.hstack([np.asarray(pictures[0])[:, :64], np.asarray(pictures[2])[:, 64:]]))
    other.save(server.base / "input" / "picture-9.png")

    def half(graph: Graph) -> dict[str, Output]:
        whole = graph.add("SolidMask", value=0.0, width=128, height=128)
        left = graph.add("SolidMask", value=1.0, width=64, height=128)
        mask = graph.add("MaskComposite", destination=whole, source=left, x=0, y=0, operation="add")
        return {"generated_mask": mask, "reference_mask": mask, **eye(512)(graph)}

    (clip_i, _, by_dino, _), _ = similar(server, [0], [9], half, dino_folder=dino[0])
    assert (clip_i, by_dino) == pytest.approx((1, 1), abs=1e-6)
    (clip_i, _, by_dino, _), _ = similar(server, [0], [9], eye(512), dino_folder=dino[0])
    assert max(clip_i, by_dino) < 0.999
