"""Infusion Train in a graph, and what the embedded host learns from the same pictures."""

from __future__ import annotations

from typing import Any

import torch

from comfyui_process.graph import Graph, Output
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
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
