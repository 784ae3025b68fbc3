"""What a concept costs while sampling, as ratios to the plain model, measured in one run.

    python benchmarks/sampling.py --host embedded --size sd15
    python benchmarks/sampling.py --host comfyui              # SD1.5's geometry, with the nodes' own patch

The last line is one JSON object of ratios:
default: one concept as it is trained by default; shared, own: one whose maps are replaced throughout, by base latent;
balanced: maps replaced in the first half of the run only; fast: never replaced; no_concept: a loaded concept the
prompt does not name; per_added_concept: what each further concept adds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from common import build, parser
from in_host import import_seconds, run_in_host
from turns import device, print_sampling, take_turns

from infusion_core.concepts import LoadedConcept
from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.residuals import zero_residual
from infusion_core.schedule import NEVER, Window
from infusion_core.streams import BaseLatent
from infusion_core.training.residual import ResidualSettings


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=10)
    args = options.parse_args(arguments)
    if args.host == "comfyui":
        if args.size != "sd15":
            sys.exit("in ComfyUI only --size sd15 is measured")
        print(f"ComfyUI imports the pack in {import_seconds():.1f} s")
        print(run_in_host("in_comfyui.py", args.latent, args.steps, args.repeats), end="")
        return
    denoiser, scheduler = build(args.size)
    place = {"device": denoiser.device, "dtype": denoiser.unet.dtype}
    text = Conditioning(torch.randn(1, 77, denoiser.base.context_width, **place))
    residual = zero_residual(denoiser.base, "word")
    noise = torch.randn(1, 4, args.latent, args.latent, **place)

    def case(
        count: int, named: bool = True, base_latent: BaseLatent = "shared", replacement: Window | None = None
    ) -> Callable[[], object]:
        spans = tuple(((3 + i,),) if named else () for i in range(count))
        concepts = [LoadedConcept(str(i), residual, replacement=replacement) for i in range(count)]
        how = SampleSettings(args.steps, 8.0, base_latent)
        sampler = Sampler(denoiser, scheduler, [Picture(EncodedPrompt(text, spans), text, concepts)], how)
        return lambda: list(sampler.run(noise))

    cases = {
        "plain": case(0),
        "default": case(1, replacement=ResidualSettings().map_window),
        "shared": case(1),
        "own": case(1, base_latent="own"),
        "balanced": case(1, replacement=Window(0.0, 0.5)),
        "fast": case(1, replacement=NEVER),
        "no_concept": case(1, named=False),
        "three concepts": case(3),
    }
    title = f"{args.size}, {args.latent}x{args.latent} latents, {device()}"
    print_sampling(title, take_turns(cases, args.repeats), args.steps)


if __name__ == "__main__":
    main()
