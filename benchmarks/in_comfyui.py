"""The sampling benchmark inside ComfyUI; started by sampling.py --host comfyui with latent edge, steps and repeats."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import comfy.cli_args

if not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
from turns import device, print_sampling, take_turns

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "context_dim": 768,
    "use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip
PROMPT = "a photo of a cat and a dog beside a horse"
WORDS = ("cat", "dog", "horse")


def load_pack() -> None:
    """Import the checkout as a package, as the host does with a folder in custom_nodes."""
    spec = importlib.util.spec_from_file_location(
        "infusion_pack", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["infusion_pack"] = module
    spec.loader.exec_module(module)


def build() -> tuple[Any, Any]:
    """MODEL and CLIP of SD1.5's geometry with random weights."""
    config = comfy.supported_models.SD15(SD15)
    config.set_inference_dtype(torch.float16 if device() == "cuda" else torch.float32, None)

    def model(disable_dynamic: bool = False) -> Any:
        place = comfy.model_management.get_torch_device()
        inner = randomised(config.get_model({}, ""))
        return comfy.model_patcher.ModelPatcher(inner, place, comfy.model_management.unet_offload_device())

    target = config.clip_target()
    target.params = {}
    clip = comfy.sd.CLIP(target)
    randomised(clip.cond_stage_model)
    patcher = model()
    patcher.cached_patcher_init = (model, ())  # how the host's LoRA trainer gets a copy of its own
    return patcher, clip


def randomised(network: Any) -> Any:
    """The network with reproducible random weights."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network


def main() -> None:
    edge, steps, repeats = (int(v) for v in sys.argv[1:4])
    load_pack()
    from infusion_pack.infusion_core.concepts import LoadedConcept
    from infusion_pack.infusion_core.residuals import zero_residual
    from infusion_pack.infusion_core.schedule import Window
    from infusion_pack.infusion_core.training.residual import ResidualSettings
    from infusion_pack.nodes.host.install import apply
    from infusion_pack.nodes.host.model import base_of

    model, clip = build()
    base = base_of(model)
    noise = torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(0))

    def case(count: int, prompt: str = PROMPT, base_latent: str = "shared", maps: float = 1.0) -> Callable[[], object]:
        replacement = Window(0.0, maps)
        concepts = [LoadedConcept(w, zero_residual(base, w), replacement=replacement) for w in WORDS[:count]]
        patched, bound = apply(model, clip, concepts, base_latent) if count else (model, clip)
        texts = [bound.encode_from_tokens_scheduled(bound.tokenize(t)) for t in (prompt, "")]
        return lambda: comfy.sample.sample(
            patched, noise, steps, 8.0, "euler", "normal", *texts, torch.zeros_like(noise), disable_pbar=True, seed=0
        )

    cases = {
        "plain": case(0),
        "default": case(1, maps=ResidualSettings().map_window.end),
        "shared": case(1),
        "own": case(1, base_latent="own"),
        "balanced": case(1, maps=0.5),
        "fast": case(1, maps=0.0),
        "no_concept": case(1, prompt="a photo of a horse"),
        "three concepts": case(3),
    }
    with torch.inference_mode():
        times = take_turns(cases, repeats)
    print_sampling(f"ComfyUI, sd15, {edge}x{edge} latents, {device()}", times, steps)


if __name__ == "__main__":
    main()
