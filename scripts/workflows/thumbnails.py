"""The examples' thumbnails: the workflows, run with TinyWorld as the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import save_concept
from infusion_core.training.residual import ResidualSettings
from infusion_lab.methods.dreambooth import DreamBoothLora
from infusion_lab.methods.method import Recipe
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import subjects_of, with_rare_words
from tests.host.examples import EARLY_LORA, LATE_LORA, LORA, OTHER_PHOTOS, PHOTOS

from .pieces import BEACH, BOTH, HOUSE, NEGATIVE, OTHERS, READING, ROOF, SUBJECT

EARLY, LATE, RANK = 50, 1500, 8  # steps of the LoRA's epochs
EDGE = 512  # px, of the shorter side
STANDINS = {"my-cat": "ember", "my-dog": "harlequin", "my-backpack": "orchid"}
WORDS = {  # what the examples' prompts say in TinyWorld's words
    READING: "a photo of a big circle at the left on a plain teal background",
    SUBJECT: "a photo of a small circle at the right on a lined pink background",
    BOTH: "a photo of a small square at the right and a small circle at the left on a plain teal background",
    BEACH: "a photo of a small circle at the left and a small square at the right and a small triangle at the bottom "
    "on a plain teal background",
    ROOF: "a photo of a big circle at the center on a lined pink background",
    HOUSE: "a photo of a big square at the left on a plain teal background",
    NEGATIVE: "",
    OTHERS: "a big square at the left on a plain pink background\na small triangle at the top",
}
SMALL: dict[str, Any] = {"width": 128, "height": 128, "resolution": 128, "word": "circle", "cfg": 3.0, "seed": 5,
                         "photos": "\n".join(PHOTOS)}  # fmt: skip


def tiny(graph: Graph) -> Graph:
    """The same graph in TinyWorld's size and words."""
    for node in graph.nodes.values():
        inputs = node["inputs"]
        inputs |= {name: SMALL[name] for name in SMALL.keys() & inputs.keys()}
        inputs |= {name: WORDS[inputs[name]] for name in {"text", "prompts"} & inputs.keys()}
        if node["class_type"] == "APTTrain":  # its photos are the dog's; TinyWorld knows no word that is not a thing's
            inputs |= {"identifier": "", "word": "square"}
            graph.nodes[inputs["images"][0]]["inputs"]["photos"] = "\n".join(OTHER_PHOTOS)
        if node["class_type"] == "ControlNetApplyAdvanced" or inputs.get("lora_name") == LORA:
            inputs |= dict.fromkeys({"strength", "strength_model"} & inputs.keys(), 0.1)
    return graph


def thumbnail(server: Server, graph: Graph, path: Path) -> None:
    """Run the graph and keep the last picture it saves; as JPEG, which the page asks for, with all its colour."""
    ran = server.run(tiny(graph))
    saved = [node for node, what in graph.nodes.items() if what["class_type"] == "SaveImage"][-1]
    shown = ran.outputs[saved]["images"][-1]
    with Image.open(server.base / shown["type"] / shown["subfolder"] / shown["filename"]) as made:
        scale = EDGE / min(made.size)
        large = made.convert("RGB").resize([round(edge * scale) for edge in made.size], Image.Resampling.LANCZOS)
    large.save(path, quality=92, subsampling=0, optimize=True)


def learn(models: Path, steps: int) -> None:
    """TinyWorld concepts and two epochs of a LoRA under the names the workflows load."""
    _learn_lora(models / "loras")
    model = load_model("tinyworld")
    for name, concept in STANDINS.items():
        wanted = CONCEPTS[concept]
        trainer = trainer_for(model, training_images(wanted), wanted.shape, ResidualSettings(steps=steps))
        for _ in trainer.run():
            pass
        save_concept(models / "infusion" / f"{name}.safetensors", trainer.learned())


def _learn_lora(folder: Path) -> None:
    """A LoRA on a TinyWorld concept, trained too long, in kohya's keys."""
    base = with_rare_words(load_model("tinyworld"))
    method = DreamBoothLora(Recipe(LATE, 3e-4, rank=RANK, naming="class word"))
    studio = Studio(base, folder, [], 0)
    for snapshot in method.train(studio, subjects_of([CONCEPTS[STANDINS["my-cat"]]]), [EARLY, LATE]):
        state = {}
        for key, tensor in snapshot.learned.tensors.items():
            path, _, which = key.removesuffix(".weight").rpartition(".")
            name = f"lora_unet_{path.replace('.', '_')}"
            state[f"{name}.{'lora_down' if which == 'lora_A' else 'lora_up'}.weight"] = tensor
            state[f"{name}.alpha"] = torch.tensor(float(RANK))
        save_file(state, folder / (EARLY_LORA if snapshot.step == EARLY else LATE_LORA))
