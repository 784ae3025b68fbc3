"""A training run that was stopped, or whose server died, goes on where it was when the same is asked for again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from PIL import Image
from safetensors import safe_open

from comfyui_process.graph import Graph, PromptError
from comfyui_process.host import find_host
from comfyui_process.server import Server
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.training.state import load_state

from . import graphs
from .conftest import write_lora
from .learning import WIDGETS as INFUSION
from .serving import serve
from .test_apt import WIDGETS as APT

STEPS, EVERY, STOP = 40, 8, 10
PROMPTS = "a photo of a {}\n\na {} at left on pink"
NODES: dict[str, dict[str, Any]] = {
    "InfusionTrain": {**INFUSION, "overfitting": "restrained", "preview_prompts": PROMPTS},
    "APTTrain": {**APT, "augment": True, "identifier": "sks", "preview_prompts": "a {} on pink"},
}
OUTPUTS = {"InfusionTrain": 5, "APTTrain": 7}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may be killed."""
    host = find_host()
    assert host is not None
    running = serve(host, tmp_path_factory.mktemp("mortal"))
    for i, picture in enumerate(training_images(CONCEPTS["ember"])[:2]):
        picture.save(running.base / "input" / f"ember-{i}.png")
    write_lora(running)
    yield running
    running.stop()


def trained(server: Server, node: str, name: str, lora: float = 0.0, **changed: Any) -> Graph:
    """A graph that trains, and saves pictures of the loss curve and of the previews, and what was learned."""
    graph = Graph()
    model, clip, vae = graphs.load(graph)
    if lora:
        inputs = {"lora_name": "test.safetensors", "strength_model": lora, "strength_clip": 0.0}
        model = graph.add("LoraLoader", model=model, clip=clip, **inputs)
    photos = graphs.images(graph, ["ember-0.png", "ember-1.png"])
    inputs = {**NODES[node], "steps": STEPS, "preview_every": EVERY, **changed}
    made = graph.add(node, model=model, clip=clip, vae=vae, images=photos, **inputs)
    if node == "APTTrain":
        graph.add("SaveLoRA", lora=made[2], prefix=f"{name}/kept")
        graph.add("SaveImage", images=made[4], filename_prefix=f"{name}/kept")
    else:
        graph.add("InfusionSaveConcept", concept=made, filename=f"{name}/kept", storage="fp16")
        graph.add("SaveImage", images=made[1], filename_prefix=f"{name}/kept")
    graph.add("SaveImage", images=made[OUTPUTS[node] - 1], filename_prefix=f"{name}/drawn")
    return graph


def left(server: Server, name: str) -> tuple[dict[str, str], dict[str, bytes], bytes, bytes]:
    """What was learned, with all that its file tells but its own name, the loss curve and the previews, as they were
    saved."""
    (learned,) = server.output.rglob(f"{name}/kept*.safetensors")
    (curve,) = server.output.rglob(f"{name}/kept*.png")
    (drawn,) = server.output.rglob(f"{name}/drawn*.png")
    with safe_open(learned, "np") as held:
        told = {k: v for k, v in (held.metadata() or {}).items() if k not in ("modelspec.title", "content_sha256")}
        numbers = {key: held.get_tensor(key).tobytes() for key in held.keys()}  # noqa: SIM118
    return told, numbers, Image.open(curve).tobytes(), Image.open(drawn).tobytes()


def states(server: Server) -> list[Path]:
    return list(server.output.rglob("training.state"))


def said(texts: list[str]) -> list[str]:
    return [text for text in texts if text.startswith("goes on")]


@pytest.mark.parametrize("node", NODES)
def test_an_interrupted_run_goes_on_to_the_same_bytes(own: Server, node: str) -> None:
    with pytest.raises(PromptError, match="interrupted"):
        own.run(trained(own, node, "resumed"), interrupt_at=STOP)
    (state,) = states(own)
    step = load_state(state).step
    assert STOP <= step < STEPS
    snapshots = sorted(path.name for path in state.parent.iterdir())
    assert f"step-{step:05d}.safetensors" in snapshots
    ran = own.run(trained(own, node, "resumed"))
    assert said(ran.texts) == [f"goes on after step {step} of the interrupted run {state.parent.name}"]
    assert f"step {STEPS} of {STEPS}, loss 0." in ran.texts[-1]
    assert ran.texts[-1].endswith("rate 0.01, 0:00 left" if node == "APTTrain" else " 0:00 left")
    assert states(own) == []
    assert (state.parent / f"step-{STEPS:05d}.safetensors").exists()
    own.kill()  # so that the host knows nothing of it
    own.start()
    ran = own.run(trained(own, node, "whole"))
    assert said(ran.texts) == []
    assert left(own, "resumed") == left(own, "whole")
    for path in [*own.output.rglob("*/kept*"), *own.output.rglob("*/drawn*")]:
        path.unlink()


@pytest.mark.parametrize("node", NODES)
def test_a_run_whose_server_died_goes_on_in_the_next_one(own: Server, node: str) -> None:
    with pytest.raises((websocket.WebSocketException, ConnectionError)):
        own.run(trained(own, node, "killed", seed=9), interrupt_at=STOP, interrupt=own.kill)
    own.start()
    (state,) = states(own)
    step = load_state(state).step
    assert step % EVERY == 0
    assert 0 < step < STEPS
    assert "training.state" not in str(own.get("/object_info"))
    other = own.run(trained(own, node, "other", seed=10, steps=1))
    assert said(other.texts) == []
    assert states(own) == [state]
    ran = own.run(trained(own, node, "killed", seed=9))
    assert said(ran.texts) == [f"goes on after step {step} of the interrupted run {state.parent.name}"]
    assert states(own) == []


def test_only_the_same_inputs_go_on(own: Server) -> None:
    def asked(lora: float = 1.0, **changed: Any) -> Graph:
        return trained(own, "InfusionTrain", "other", lora=lora, **{"overfitting": "ignored", **changed})

    with pytest.raises(PromptError, match="interrupted"):
        own.run(asked(), interrupt_at=STOP)
    (state,) = states(own)
    for changed in ({"lora": 0.0}, {"lora": 0.9}, {"captions": "a {}"}, {"learning_rate": 0.03}):
        assert said(own.run(asked(**changed)).texts) == [], changed  # type: ignore[arg-type]
    assert states(own) == [state]
    assert len(said(own.run(asked()).texts)) == 1


def test_a_damaged_state_is_passed_over_with_a_warning(own: Server) -> None:
    with pytest.raises(PromptError, match="interrupted"):
        own.run(trained(own, "InfusionTrain", "damaged", seed=31), interrupt_at=STOP)
    (state,) = states(own)
    state.write_bytes(state.read_bytes()[:-9])
    ran = own.run(trained(own, "InfusionTrain", "damaged", seed=31, steps=STEPS))
    assert said(ran.texts) == []
    assert "is not a training state Infusion can read" in own.log.read_text()
    state.unlink()
