"""What the similarity metrics are tried on: a small CLIP_VISION, and instruments."""

from pathlib import Path

import comfy.clip_vision
import folder_paths
from safetensors.torch import load_file, save_file

from .others import TEXT, node


@node(("CLIP_VISION",), name=TEXT)
def vision(name):
    """A CLIP_VISION from input/NAME, a folder in transformers' format."""
    folder = Path(folder_paths.get_input_directory()) / name
    model = comfy.clip_vision.ClipVisionModel(str(folder / "config.json"))
    missing, _ = model.load_sd(load_file(folder / "model.safetensors"))
    assert not missing, missing
    return model


@node(("CONDITIONING",), text="CONDITIONING", name=TEXT)
def pooled(text, name):
    """Write the pooled text of a conditioning to output/NAME.safetensors."""
    path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
    save_file({"pooled": text[0][1]["pooled_output"].float().contiguous()}, path)
    return text


@node(("MODEL",), model="MODEL", by=("FLOAT", {"default": 0.0}))
def shift(model, by):
    """A model that sees `by` less noise everywhere than it did."""
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: (
            apply(args["input"], args["timestep"], **args["c"]) + by * args["timestep"].reshape(-1, 1, 1, 1)
        )
    )
    return patched


NODES = {"TestVision": vision, "TestPooled": pooled, "TestShift": shift}
