"""Write locales/en/nodeDefs.json from the nodes themselves, as a running ComfyUI describes them.

python scripts/locales.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comfyui_process.host import REPOSITORY, require_host
from comfyui_process.server import Server

ENGLISH = REPOSITORY / "locales" / "en" / "nodeDefs.json"


def definitions(server: Server) -> dict[str, Any]:
    """Names and tooltips of this pack's nodes in the format of ComfyUI's translations."""
    found = {}
    for name, info in sorted(server.get("/object_info").items()):
        if not name.startswith("Infusion"):
            continue
        inputs = {}
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                inputs[key] = {"name": options.get("display_name") or key, "tooltip": options.get("tooltip", "")}
        outputs = {
            str(i): {"name": label, "tooltip": tip or ""}
            for i, (label, tip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        }
        found[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": outputs,
        }
    return found


def main() -> None:
    host = require_host()
    with tempfile.TemporaryDirectory() as base:
        server = Server(host, Path(base))
        try:
            ENGLISH.write_text(json.dumps(definitions(server), indent=2, ensure_ascii=False) + "\n")
        finally:
            server.stop()
    print(f"wrote {ENGLISH}")


if __name__ == "__main__":
    main()
