"""What a batch of different concepts costs against a batch of one: pictures side by side, in turns, in one process.

    python benchmarks/mixed.py                          # SD1.5's geometry; needs the extra "standalone"
    python benchmarks/mixed.py --size tiny --latent 16

The last line is one JSON object: time of a mixed batch to that of one concept's, of a batch without concepts to that,
and what looking its concepts up in a table of many takes, as a share of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from common import build, parser
from turns import device, take_turns

from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.embedded.sampling import Picture, Sampler, SampleSettings
from infusion_core.library import ConceptLibrary
from infusion_core.residual_table import tables_of
from infusion_core.residuals import zero_residual


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--pictures", type=int, default=8)
    options.add_argument("--concepts", type=int, default=10_000, help="in the table")
    args = options.parse_args(arguments)
    denoiser, scheduler = build(args.size)
    place = {"device": denoiser.device, "dtype": denoiser.unet.dtype}
    residual, count = zero_residual(denoiser.base, "word"), args.pictures
    library = ConceptLibrary.of((f"c{i}", residual) for i in range(args.concepts))
    texts = [Conditioning(torch.randn(1, 77, denoiser.base.context_width, **place)) for _ in range(count + 1)]
    noise = torch.randn(count, 4, args.latent, args.latent, **place)
    spread = [f"c{i * args.concepts // count}" for i in range(count)]

    def draw(names: Sequence[str], prompts: Sequence[Conditioning]) -> None:
        pictures = [
            Picture(EncodedPrompt(text, (((3,),),) * bool(name)), texts[-1], [library.concept(name)] if name else [])
            for name, text in zip(names, prompts, strict=True)
        ]
        settings = SampleSettings(args.steps, 8.0)
        list(Sampler(denoiser, scheduler, pictures, settings).run(noise))

    def look_up() -> None:
        tables_of([library.concept(name).residual for name in spread], denoiser.device, denoiser.unet.dtype)

    cases = {
        "no concept": lambda: draw([""] * count, texts[:1] * count),
        "one concept": lambda: draw(["c0"] * count, texts[:1] * count),
        "mixed": lambda: draw(spread, texts[:count]),
        "look up": look_up,
    }
    took = take_turns(cases, args.repeats)
    print(f"{args.size}, {count} pictures of {args.latent}x{args.latent} latents, {args.steps} steps, {device()}; "
          f"{len(library):,} concepts in {library.bytes / 1e6:.1f} MB")  # fmt: skip
    for name, seconds in took.items():
        print(f"{name:>12}  {seconds:9.4f} s")
    one = took["one concept"]
    ratios = {"mixed": took["mixed"] / one, "no_concept": took["no concept"] / one, "look_up": took["look up"] / one}
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
