"""The examples' thumbnails: the workflows, run with TinyWorld as the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from comfyui_process.graph import Graph
from comfyui_process.server import Server
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import save_concept
from infusion_core.training.residual import ResidualSettings
from tests.host.examples import PHOTOS

from .examples import BEACH, HOUSE, NEGATIVE, OTHERS, READING, ROOF

EDGE = 512  # px, of the shorter side
STANDINS = {"my-cat": "ember", "my-dog": "harlequin", "my-backpack": "orchid"}
WORDS = {  # what the examples' prompts say in TinyWorld's words
    READING: "a photo of a big circle at the left on a plain teal background",
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
        if node["class_type"] in ("LoraLoader", "ControlNetApplyAdvanced"):
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


def learn(folder: Path, steps: int) -> None:
    """TinyWorld concepts under the names the workflows load."""
    model = load_model("tinyworld")
    for name, concept in STANDINS.items():
        wanted = CONCEPTS[concept]
        trainer = trainer_for(model, training_images(wanted), wanted.shape, ResidualSettings(steps=steps))
        for _ in trainer.run():
            pass
        save_concept(folder / f"{name}.safetensors", trainer.learned())
