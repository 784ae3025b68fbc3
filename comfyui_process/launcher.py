"""Runs a file inside a real ComfyUI, also where torchvision and torchaudio cannot load.

python launcher.py HOST FILE ARGS...
"""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
AUDIO = ("torchaudio", "torchaudio.functional", "torchaudio.transforms")


def complete_torchvision() -> torch.library.Library | None:
    """Define the operators that torchvision lacks beside a torch of another kind; their schemas let it be imported.

    Where it can load them itself, nothing is defined: a second definition would end the process.

    Returns:
        What keeps the definitions alive, or None.
    """
    try:
        importlib.import_module("torchvision")
        if hasattr(torch.ops.torchvision, "nms"):
            return None
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half of it is there
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def replace_torchaudio() -> None:
    """An empty module where there is no usable build; only audio models need more."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):
        for name in AUDIO:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)


def main() -> None:
    """Run the file as the host's own interpreter would."""
    kept = complete_torchvision()
    replace_torchaudio()
    sys.path[0] = str(Path(sys.argv[1]))  # in place of this folder
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    del kept


if __name__ == "__main__":
    main()
