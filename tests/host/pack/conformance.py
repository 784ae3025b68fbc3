"""The conformance check, run on the pack's own denoiser."""

import importlib.util
import sys
from pathlib import Path

import folder_paths
from safetensors.torch import load_file, save_file

from .others import TEXT, node, pack_name
from .tinyworld import REPOSITORY


def _check():
    spec = importlib.util.spec_from_file_location("infusion_conformance", REPOSITORY / "tests" / "conformance.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@node(("STRING",), model="MODEL", name=TEXT)
def conformance(model, name):
    """Run the plans on input/NAME.safetensors; what came out goes to output/NAME.safetensors."""
    given = load_file(Path(folder_paths.get_input_directory()) / f"{name}.safetensors")
    with sys.modules[f"{pack_name()}.nodes.host.denoiser"].training(model) as denoiser:
        observed = _check().observed(denoiser, f"{pack_name()}.infusion_core", given)
    path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in observed.items()}, path)
    return name


NODES = {"TestConformance": conformance}
