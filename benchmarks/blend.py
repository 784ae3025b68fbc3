"""What DreamBlend costs: the late model alone, guided by the gradient, and with replaced maps, in one run.

    python benchmarks/blend.py --host embedded
    python benchmarks/blend.py --host comfyui              # SD1.5's geometry, with the node's own wrappers

The last line is one JSON object: gradient and replacement are ratios to the late model's plain sampling; gradient_mb is
what a step down the gradient keeps beside the weights for one picture in half precision (counted, half of what float32
keeps), kept_mb what the early model's queries and keys of one step and picture take.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from common import build, parser
from in_host import run_in_host
from turns import device, print_blend, take_turns

from infusion_core.attention import Plan, QueryKey
from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.dreamblend import BlendSettings, MapDistance, map_gradient
from infusion_core.embedded.blend import BlendSampler
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.readers import Recorder

HALF = 2**20 * 2  # bytes of float32 that are a megabyte of half precision


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=4)
    args = options.parse_args(arguments)
    if args.host == "comfyui":
        if args.size != "sd15":
            sys.exit("in ComfyUI only --size sd15 is measured")
        print(run_in_host("in_comfyui_blend.py", args.latent, args.steps, args.repeats), end="")
        return
    denoiser, scheduler = build(args.size)
    place = {"device": denoiser.device, "dtype": denoiser.unet.dtype}
    early, late = (Conditioning(torch.randn(1, 77, denoiser.base.context_width, **place)) for _ in range(2))
    noise = torch.randn(1, 4, args.latent, args.latent, **place)

    def sampler(text: Conditioning) -> Sampler:
        return Sampler(denoiser, scheduler, [Picture(EncodedPrompt(text), text)], SampleSettings(args.steps, 8.0))

    def guided(settings: BlendSettings) -> Callable[[], object]:
        return lambda: list(BlendSampler(sampler(early), sampler(late), settings).run(noise))

    cases = {
        "plain": lambda: list(sampler(late).run(noise)),
        "gradient": guided(BlendSettings()),
        "replacement": guided(BlendSettings("replacement", 1.0)),
    }
    title = f"{args.size}, {args.latent}x{args.latent} latents, {device()}"
    ratios = print_blend(title, take_turns(cases, args.repeats), args.steps)
    print(json.dumps({**ratios, **memory(denoiser, noise, early, late)}))


def memory(denoiser: UNetDenoiser, noise: torch.Tensor, early: Conditioning, late: Conditioning) -> Mapping[str, float]:
    """Megabytes in half precision: what backward finds, and what is kept of the early model at a step."""
    maps: dict[str, QueryKey] = {}
    t, found = torch.tensor(500, device=noise.device), dict[int, int]()
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes() * 4 // tensor.element_size()
        return tensor

    def distance(at: torch.Tensor) -> torch.Tensor:
        reader = MapDistance(maps)
        denoiser.forward(at.to(noise.dtype), t, late, Plan(readers=[reader]))
        assert reader.total is not None
        return reader.total

    with torch.no_grad():
        denoiser.forward(noise, t, early, Plan(readers=[Recorder(maps)]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        map_gradient(noise, distance)
    kept = 4 * sum(query.numel() + key.numel() for query, key in maps.values())
    return {"gradient_mb": round(sum(found.values()) / HALF, 1), "kept_mb": round(kept / HALF, 1)}


if __name__ == "__main__":
    main()
