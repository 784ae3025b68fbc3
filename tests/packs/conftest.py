"""Servers with packs that other people wrote, from the folder PACKS_PATH; without it these tests are skipped."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfyui_process.host import find_host
from comfyui_process.server import Server
from infusion_core.residual_file import save_concept
from tests.host.conftest import residual, write_lora
from tests.host.serving import serve

OWN = Path(__file__).with_name("pack")
FAILED = re.compile(r"IMPORT FAILED\): .*/(.+)")


def found(name: str) -> Path | None:
    """A pack's folder in PACKS_PATH, whatever the case of its letters."""
    given = os.environ.get("PACKS_PATH")
    folders = Path(given).expanduser().iterdir() if given else ()
    return next((f.resolve() for f in folders if f.name.lower() == name.lower()), None)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with the packs that the module names in PACKS, with TinyWorld, concepts and a LoRA."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # Prompt Control has no nodes where it finds this
    host, names = find_host(), request.module.PACKS
    if host is None:
        pytest.skip("no ComfyUI found; set COMFYUI_PATH")
    if not os.environ.get("PACKS_PATH"):
        pytest.skip("no packs given; set PACKS_PATH to a folder of them")
    for name in names:
        if found(name) is None:
            pytest.skip(f"{name} is not in PACKS_PATH")
    base = tmp_path_factory.mktemp("packs")
    (base / "models" / "checkpoints").mkdir(parents=True)
    (base / "models" / "checkpoints" / "tiny.safetensors").touch()  # loads as TinyWorld
    running = serve(host, base, {"infusion_packs": OWN, **{n: found(n) for n in names}})  # type: ignore[dict-item]
    try:
        _require_loaded(running)
        _write(running)
        yield running
    finally:
        running.stop()


def _require_loaded(running: Server) -> None:
    log = running.log.read_text()
    failed = FAILED.search(log)
    if failed:
        reason = re.search(rf"/{re.escape(failed[1])} module for custom nodes(.*)", log)
        pytest.skip(f"{failed[1]} does not load on this machine{reason[1] if reason else ''}")


def _write(running: Server) -> None:
    concepts = {"round": residual("circle", 1), "nothing": residual("circle", 7, scale=0.0)}
    for name, concept in concepts.items():
        save_concept(running.base / "models" / "infusion" / f"{name}.safetensors", concept)
    write_lora(running)
