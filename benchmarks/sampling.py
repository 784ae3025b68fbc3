"""What a concept costs while sampling, as ratios to the plain model, measured in one run.

    python benchmarks/sampling.py --host embedded --size sd15

Random weights: speed does not depend on them. The last line is one JSON object of ratios:
shared, own: one concept, by base latent; balanced: maps replaced in the first half of the run only; fast: never
replaced; no_concept: a loaded concept the prompt does not name; per_added_concept: what each further concept adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.embedded.sampling import Sampler, SampleSettings, Window
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.noise import sigmas_from_alphas
from infusion_core.residuals import zero_residual

SIZES = {
    "tiny": {"block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 128,
             "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
             "attention_head_dim": 4},
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
}  # fmt: skip


def build(size: str, device: str) -> tuple[UNetDenoiser, DDIMScheduler]:
    """A randomly initialised network of that geometry, with Stable Diffusion's schedule."""
    torch.manual_seed(0)
    dtype = torch.float16 if device == "cuda" else torch.float32
    unet = UNet2DConditionModel(sample_size=32, **SIZES[size]).to(device, dtype)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return UNetDenoiser(unet, sigmas_from_alphas(scheduler.alphas_cumprod), "epsilon"), scheduler


def seconds(sampler: Sampler, noise: torch.Tensor) -> float:
    """Wall seconds of one sampling run."""
    started = time.perf_counter()
    for _ in sampler.run(noise):
        pass
    if noise.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=("embedded", "comfyui"), default="embedded")
    parser.add_argument("--size", choices=tuple(SIZES), default="sd15")
    parser.add_argument("--latent", type=int, default=32, help="edge of the latent")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    if args.host == "comfyui":
        sys.exit("the ComfyUI nodes are not in this version; use --host embedded")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser, scheduler = build(args.size, device)
    width, dtype = denoiser.base.context_width, denoiser.unet.dtype
    text = Conditioning(torch.randn(1, 77, width, device=device, dtype=dtype))
    residual = zero_residual(denoiser.base, "word")
    noise = torch.randn(1, 4, args.latent, args.latent, device=device, dtype=dtype)

    def sampler(count: int, named: bool = True, **options: object) -> Sampler:
        spans = tuple(((3 + i,),) if named else () for i in range(count))
        settings = SampleSettings(args.steps, 8.0, **options)  # type: ignore[arg-type]
        return Sampler(denoiser, scheduler, EncodedPrompt(text, spans), text, [(residual, 1.0)] * count, settings)

    cases = {
        "plain": sampler(0),
        "shared": sampler(1),
        "own": sampler(1, base_latent="own"),
        "balanced": sampler(1, replacement=Window(0.0, 0.5)),
        "fast": sampler(1, replacement=Window(0.0, 0.0)),
        "no_concept": sampler(1, named=False),
        "three concepts": sampler(3),
    }
    for case in cases.values():
        seconds(case, noise)  # warm up
    # Cases take turns, so that a machine that slows down slows all of them.
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.repeats):
        for name, case in cases.items():
            times[name].append(seconds(case, noise))
    best = {name: statistics.median(values) for name, values in times.items()}
    print(f"{args.size}, {args.latent}x{args.latent} latents, {device}")
    for name, value in best.items():
        print(f"{name:>16}  {value / args.steps:8.3f} s/step  x{value / best['plain']:.3f}")
    ratios = {name: best[name] / best["plain"] for name in ("shared", "own", "balanced", "fast", "no_concept")}
    ratios["per_added_concept"] = (best["three concepts"] - best["shared"]) / 2 / best["plain"]
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
