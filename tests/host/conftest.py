from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from comfyui_process.host import find_host
from comfyui_process.server import Server
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import save_concept
from infusion_core.residuals import ConceptResidual, zero_residual

from .serving import serve

LACKING = "this ComfyUI has no"  # how the reason begins where a version lacks what is tested


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_host() is None:
        here = [item for item in items if item.path.parent.name == "host"]
        for item in here:
            item.add_marker(pytest.mark.skip(reason="no ComfyUI found; set COMFYUI_PATH"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI_HOST") == "1" and skipped_here(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last words of a run."""
    skipped, reporter = skipped_here(config), config.pluginmanager.get_plugin("terminalreporter")
    if not skipped or reporter is None:
        return
    reporter.section("HOST TESTS DID NOT RUN", sep="!", red=True)
    for reason, count in Counter(skipped).items():
        reporter.line(f"{count} host tests were skipped: {reason}")
    if os.environ.get("CI_HOST") == "1":
        reporter.line("CI_HOST=1: a skipped host test fails the run.", red=True)


def skipped_here(config: pytest.Config) -> list[str]:
    """Why each host test was skipped that this ComfyUI could have run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [r for r in reporter.stats.get("skipped", []) if r.nodeid.startswith("tests/host/")] if reporter else []
    reasons = [r.longrepr[2].removeprefix("Skipped: ") for r in skipped]
    return [reason for reason in reasons if not reason.startswith(LACKING)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    host = find_host()
    assert host is not None
    running = serve(host, tmp_path_factory.mktemp("comfy"))
    yield running
    running.stop()


def residual(word: str, seed: int, layout: str = "block", scale: float = 2.0, bins: int = 1) -> ConceptResidual:
    """A concept with random numbers: what counts is that both hosts do the same with it."""
    from infusion_core.embedded.model import load_model

    generator = torch.Generator().manual_seed(seed)
    blank = zero_residual(load_model("tinyworld").denoiser.base, word, layout, bins, parts=3)  # type: ignore[arg-type]
    drawn = {k: torch.randn(t.shape, generator=generator) * scale for k, t in blank.tensors.items()}
    return ConceptResidual(word, blank.layout, drawn, blank.architecture, blank.context_width)


@pytest.fixture(scope="session")
def concepts(server: Server) -> dict[str, ConceptResidual]:
    """Concepts by file name, also written to the server's models/infusion."""
    made = {
        "round": residual("circle", 1),
        "corner": residual("square", 2),
        "peak": residual("triangle", 3),
        "layered": residual("circle", 4, "layer"),
        "valued": residual("circle", 5, "value"),
        "binned": residual("circle", 6, bins=3),
        "parted": residual("circle", 8, "parts"),
        "nothing": residual("circle", 7, scale=0.0),
    }
    for name, concept in made.items():
        save_concept(server.base / "models" / "infusion" / f"{name}.safetensors", concept)
    return made


@pytest.fixture(scope="session")
def pictures(server: Server) -> list[Image.Image]:
    """Pictures of two TinyWorld concepts, also in the host's input folder as picture-0.png and so on."""
    drawn = [p for name in ("ember", "wasp") for p in training_images(CONCEPTS[name])[:2]]
    for i, picture in enumerate(drawn):
        picture.save(server.base / "input" / f"picture-{i}.png")
    return drawn


@pytest.fixture(scope="session")
def photos(server: Server) -> list[str]:
    """Training pictures of a TinyWorld concept, ember, in the host's input folder."""
    names = []
    for i, picture in enumerate(training_images(CONCEPTS["ember"])[:3]):
        names.append(f"ember-{i}.png")
        picture.save(server.base / "input" / names[-1])
    return names


@pytest.fixture(scope="session")
def lora(server: Server) -> Path:
    """A LoRA on several attention layers, in the generic key format."""
    return write_lora(server)


def write_lora(server: Server) -> Path:
    """What the fixture `lora` gives."""
    generator = torch.Generator().manual_seed(9)
    state = {}
    for layer in ("input_blocks.1.1", "middle_block.1", "output_blocks.3.1"):
        width = 64 if layer != "middle_block.1" else 128
        for part, inputs in (("attn1.to_q", width), ("attn2.to_q", width), ("attn2.to_v", 160)):
            key = f"diffusion_model.{layer}.transformer_blocks.0.{part}"
            state[f"{key}.lora_up.weight"] = torch.randn(width, 4, generator=generator) * 0.2
            state[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) * 0.2
    path = server.base / "models" / "loras" / "test.safetensors"
    save_file(state, path)
    return path
