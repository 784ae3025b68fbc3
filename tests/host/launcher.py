"""Runs a file inside a real ComfyUI, also where torchvision and torchaudio cannot load.

python launcher.py HOST FILE ARGS...
"""

import contextlib
import importlib
import runpy
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch


def main() -> None:
    host = Path(sys.argv[1])
    # torchvision's compiled operators are missing beside a CPU torch; their schemas are enough to import it.
    library = torch.library.Library("torchvision", "DEF")
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor a) -> Tensor"):
        with contextlib.suppress(RuntimeError):  # torchvision can load after all
            library.define(schema)
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):
        for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.path[0] = str(host)  # in place of this folder
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
