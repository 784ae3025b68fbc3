"""Write example_workflows/: the graphs below, converted and laid out by ComfyUI's own page, and their thumbnails.

    python scripts/example_workflows.py

The workflows are written for a stock SD1.5 checkpoint. The thumbnails are made by running them with TinyWorld in its
place: three of its concepts stand in for the cat, the dog and the backpack.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comfyui_process.graph import Graph, Output
from comfyui_process.host import REPOSITORY, require_host
from comfyui_process.server import Server
from infusion_core.captions import OTHER_PROMPTS
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import save_concept
from infusion_core.training.residual import ResidualSettings
from tests.host.examples import CHECKPOINT, CONTROLNET, LORA, PHOTOS, prepare
from tests.host.page import open_page
from tests.host.serving import serve

FOLDER = REPOSITORY / "example_workflows"
THUMBNAIL_PX = 384
NEGATIVE = "blurry, low quality"
OTHERS = "\n".join(OTHER_PROMPTS)
STANDINS = {"my-cat": "ember", "my-dog": "harlequin", "my-backpack": "orchid"}
TINY = {  # what the thumbnails' prompts say in TinyWorld's words
    "a photo of a cat reading a book in a library": "a photo of a big circle at the left on a plain teal background",
    "a photo of a cat and a dog beside a backpack on a beach":
        "a photo of a small circle at the left and a small square at the right and a small triangle at the bottom "
        "on a plain teal background",
    "a photo of a cat on a snowy roof": "a photo of a big circle at the center on a lined pink background",
    NEGATIVE: "",
    OTHERS: "a big square at the left on a plain pink background\na small triangle at the top",
}  # fmt: skip


def checkpoint(graph: Graph) -> tuple[Output, Output, Output]:
    loaded = graph.add("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    return loaded[0], loaded[1], loaded[2]


def concepts(graph: Graph, *names: str) -> Output:
    stack: dict[str, Output] = {}
    for name in names:
        loaded = graph.add("InfusionLoadConcept", concept_name=f"{name}.safetensors", strength=1.0, **stack)
        stack = {"previous": loaded}
    return stack["previous"]


def patch(graph: Graph, model: Output, clip: Output, concept: Output) -> tuple[Output, Output]:
    patched = graph.add(
        "InfusionAttentionPatch", model=model, clip=clip, concept=concept, base_latent="shared", start=0.0, end=1.0,
        maps_start=0.0, maps_end=1.0, block_strengths="", map_replacement="as trained",
    )  # fmt: skip
    return patched[0], patched[1]


def picture(graph: Graph, model: Output, positive: Output, negative: Output, vae: Output, name: str) -> None:
    latent = graph.add("EmptyLatentImage", width=512, height=512, batch_size=1)
    samples = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=7, steps=25, cfg=7.0,
        sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=samples, vae=vae), filename_prefix=name)


def train() -> Graph:
    graph = Graph()
    model, clip, vae = checkpoint(graph)
    images = graph.add("LoadImage", image=PHOTOS[0])[0]
    for name in PHOTOS[1:]:
        images = graph.add("ImageBatch", image1=images, image2=graph.add("LoadImage", image=name)[0])
    default = ResidualSettings()
    trained = graph.add(
        "InfusionTrain", model=model, clip=clip, vae=vae, images=images, word="cat", steps=default.steps,
        batch_size=default.batch_size, learning_rate=default.learning_rate, layout=default.layout, bins=1,
        resolution=512, seed=0, preview_every=default.snapshot_every, captions="",
        replace_maps=default.replace_maps,
    )  # fmt: skip
    graph.add("InfusionSaveConcept", concept=trained[0], filename="my-cat", storage="fp16")
    graph.add("PreviewImage", images=trained[1])
    return graph


def one_concept() -> Graph:
    graph = Graph()
    model, clip, vae = checkpoint(graph)
    model, clip = patch(graph, model, clip, concepts(graph, "my-cat"))
    texts = [graph.add("CLIPTextEncode", clip=clip, text=t) for t in (next(iter(TINY)), NEGATIVE)]
    picture(graph, model, texts[0], texts[1], vae, "infusion-one")
    return graph


def three_concepts() -> Graph:
    graph = Graph()
    model, clip, vae = checkpoint(graph)
    model, clip = patch(graph, model, clip, concepts(graph, "my-cat", "my-dog", "my-backpack"))
    texts = [graph.add("CLIPTextEncode", clip=clip, text=t) for t in (list(TINY)[1], NEGATIVE)]
    picture(graph, model, texts[0], texts[1], vae, "infusion-three")
    return graph


def concept_lora_controlnet() -> Graph:
    graph = Graph()
    model, clip, vae = checkpoint(graph)
    loaded = graph.add("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=0.6, strength_clip=0.6)
    model, clip = patch(graph, loaded[0], loaded[1], concepts(graph, "my-cat"))
    texts = [graph.add("CLIPTextEncode", clip=clip, text=t) for t in (list(TINY)[2], NEGATIVE)]
    edges = graph.add("Canny", image=graph.add("LoadImage", image="example.png")[0], low_threshold=0.3,
                      high_threshold=0.7)  # fmt: skip
    controlled = graph.add(
        "ControlNetApplyAdvanced", positive=texts[0], negative=texts[1], image=edges, strength=0.6, start_percent=0.0,
        end_percent=0.8, control_net=graph.add("ControlNetLoader", control_net_name=CONTROLNET),
    )  # fmt: skip
    picture(graph, model, controlled[0], controlled[1], vae, "infusion-stack")
    return graph


def what_else_changes() -> Graph:
    """The same measurement of a LoRA and of a concept, both of a cat, on prompts that are not about cats."""
    graph = Graph()
    model, clip, vae = checkpoint(graph)
    images = graph.add("LoadImage", image=PHOTOS[0])[0]
    lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=1.0, strength_clip=1.0)
    infused = patch(graph, model, clip, concepts(graph, "my-cat"))
    for custom, custom_clip in ((infused[0], infused[1]), (lora[0], lora[1])):
        measured = graph.add(
            "InfusionOverfitMetrics", base_model=model, custom_model=custom, clip=clip, custom_clip=custom_clip,
            vae=vae, images=images, prompts=OTHERS, draws=64, resolution=512, seed=0,
        )  # fmt: skip
        graph.add("PreviewImage", images=measured[1])
    return graph


EXAMPLES: dict[str, Callable[[], Graph]] = {
    "1-train-a-concept": train,
    "2-use-a-concept": one_concept,
    "3-three-concepts": three_concepts,
    "4-concept-lora-controlnet": concept_lora_controlnet,
    "5-what-else-changes": what_else_changes,
}


def tiny(graph: Graph) -> Graph:
    """The same graph in TinyWorld's size and words."""
    small: dict[str, Any] = {"width": 128, "height": 128, "resolution": 128, "word": "circle", "cfg": 3.0, "seed": 5}
    for node in graph.nodes.values():
        for name in small.keys() & node["inputs"].keys():
            node["inputs"][name] = small[name]
        for name in {"text", "prompts"} & node["inputs"].keys():
            node["inputs"][name] = TINY[node["inputs"][name]]
        if node["class_type"] in ("LoraLoader", "ControlNetApplyAdvanced"):
            node["inputs"] |= {k: 0.1 for k in ("strength", "strength_model") if k in node["inputs"]}
    return graph


def thumbnail(server: Server, name: str, graph: Graph) -> None:
    """Run the graph and keep its last picture."""
    ran = server.run(tiny(graph), timeout=500)
    shown = [image for output in ran.outputs.values() for image in output.get("images", [])]
    path = server.base / shown[-1]["type"] / shown[-1]["subfolder"] / shown[-1]["filename"]
    with Image.open(path) as made:
        made.convert("RGB").resize((THUMBNAIL_PX, THUMBNAIL_PX * made.height // made.width)).save(
            FOLDER / f"{name}.jpg", quality=85
        )


def learn(folder: Path, steps: int) -> None:
    """TinyWorld concepts under the names the workflows load."""
    model = load_model("tinyworld")
    for name, concept in STANDINS.items():
        wanted = CONCEPTS[concept]
        trainer = trainer_for(model, training_images(wanted), wanted.shape, ResidualSettings(steps=steps))
        for _ in trainer.run():
            pass
        save_concept(folder / f"{name}.safetensors", trainer.learned())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the stand-ins")
    parser.add_argument("--no-thumbnails", action="store_true")
    args = parser.parse_args()
    host = require_host()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base:
        server = serve(host, Path(base))
        try:
            prepare(server)
            with open_page(server) as page:
                for name, build in EXAMPLES.items():
                    workflow = page.evaluate(
                        """async ([graph, name]) => {
                             await window.app.loadApiJson(graph, name);
                             window.app.graph.arrange(80);
                             return window.app.graph.serialize();
                           }""",
                        [build().nodes, name],
                    )
                    (FOLDER / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n")
            if not args.no_thumbnails:
                learn(server.base / "models" / "infusion", args.steps)
                for name, build in EXAMPLES.items():
                    thumbnail(server, name, build())
        finally:
            server.stop()


if __name__ == "__main__":
    main()
