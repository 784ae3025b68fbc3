"""The server that host tests run on: TinyWorld as a checkpoint, what users stack, a second model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comfyui_process.server import Server

PACK = Path(__file__).with_name("pack")


def serve(host: Path, base: Path, packs: Mapping[str, Path] | None = None) -> Server:
    """ComfyUI with this pack, the test pack and `packs` in a fresh base; BASE/elsewhere/concepts has concepts too."""
    (base / "elsewhere" / "concepts").mkdir(parents=True)
    config = base / "extra.yaml"
    config.write_text(f"mine:\n  base_path: {base / 'elsewhere'}\n  infusion: concepts\n")
    return Server(host, base, {"infusion_test": PACK, **(packs or {})}, ["--extra-model-paths-config", config])
