"""DreamBlend's benchmark inside ComfyUI; started by blend.py --host comfyui with latent edge, steps and repeats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent))

from in_comfyui import PROMPT, build, comfy, load_pack  # it chooses the device before the host is imported
from turns import device, print_blend, take_turns


def main() -> None:
    edge, steps, repeats = (int(v) for v in sys.argv[1:4])
    load_pack()
    from infusion_pack.infusion_core.dreamblend import BlendSettings
    from infusion_pack.nodes.host.blend import guide
    from infusion_pack.nodes.host.model import base_of

    model, clip = build()
    sites = base_of(model).sites
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, "")]
    other = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a house"))
    noise = torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(0))

    def drawn(settings: BlendSettings | None) -> object:
        late = model if settings is None else guide(model, model, sites, settings, other, None)
        return comfy.sample.sample(
            late, noise, steps, 8.0, "euler", "normal", *texts, torch.zeros_like(noise), disable_pbar=True, seed=0
        )

    cases = {
        "plain": lambda: drawn(None),
        "gradient": lambda: drawn(BlendSettings()),
        "replacement": lambda: drawn(BlendSettings("replacement", 1.0)),
    }
    with torch.inference_mode():
        times = take_turns(cases, repeats)
    print(json.dumps(print_blend(f"ComfyUI, sd15, {edge}x{edge} latents, {device()}", times, steps)))


if __name__ == "__main__":
    main()
