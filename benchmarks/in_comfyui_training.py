"""The training benchmark inside ComfyUI, against its own LoRA trainer; started by training.py --host comfyui.

Arguments: latent edge, batch, steps, repeats; then, to measure memory in this process alone, the method.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.append(str(Path(__file__).resolve().parent))

from in_comfyui import PROMPT, WORDS, build, load_pack
from turns import RANK, device, take_turns

MB = 2**20


def infusion(model: Any, clip: Any, latents: torch.Tensor, checkpointing: bool = False) -> Callable[[int], None]:
    """A run of so many steps of the Infusion Train node's trainer."""
    from infusion_pack.infusion_core.training.residual import ResidualSettings, residual_trainer
    from infusion_pack.nodes.host.denoiser import encode_captions, training

    def run(steps: int) -> None:
        with training(model, checkpointing) as denoiser:
            prompts = encode_captions(model, clip, [PROMPT], WORDS[0], latents)
            settings = ResidualSettings(steps=steps + 1, batch_size=len(latents), snapshot_every=steps + 1)
            reports = residual_trainer(denoiser, latents, prompts, WORDS[0], settings).run()
            for _ in range(steps):  # the last step would add a validation pass
                next(reports)

    return run


def lora(model: Any, clip: Any, latents: torch.Tensor) -> Callable[[int], None]:
    """A run of so many steps of ComfyUI's Train LoRA node: its defaults in full precision on a CPU."""
    from comfy_extras.nodes_train import TrainLoraNode

    defaults = {i.id: [getattr(i, "default", None)] for i in TrainLoraNode.define_schema().inputs}
    text = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    chosen = {"rank": RANK, "gradient_checkpointing": False, "batch_size": len(latents), "optimizer": "AdamW"}
    chosen |= {"training_dtype": "bf16" if device() == "cuda" else "fp32", "lora_dtype": "fp32"}

    def run(steps: int) -> None:
        options = defaults | {k: [v] for k, v in chosen.items()} | {"steps": [steps]}
        options |= {"model": [model], "latents": [{"samples": latents}], "positive": [text]}
        options["existing_lora"] = ["[None]"]
        TrainLoraNode.execute(**options)

    return run


def apt(
    model: Any, clip: Any, latents: torch.Tensor, restrained: bool = True, checkpointing: bool = False
) -> Callable[[int], None]:
    """A run of so many steps of the APT Train node's trainer, with everything on or everything off."""
    from infusion_pack.infusion_core.lora import LoraSet
    from infusion_pack.infusion_core.training.apt import AptObjective, AptSettings
    from infusion_pack.infusion_core.training.engine import Trainer
    from infusion_pack.infusion_core.training.shown import Shown
    from infusion_pack.nodes.host.denoiser import training
    from infusion_pack.nodes.host.lora import captions_for, layers_of

    def run(steps: int) -> None:
        settings = AptSettings(
            steps=steps + 1, batch_size=len(latents), snapshot_every=steps + 1, rank=RANK, targets="transformer"
        )
        settings = settings if restrained else settings.unrestrained
        with training(model, checkpointing) as denoiser:
            shown = Shown(latents[:, None], captions_for(denoiser.model, clip, [PROMPT], latents, False))
            lora = LoraSet(layers_of(denoiser.model, clip, settings.targets, False), settings.rank)
            with lora.installed():
                reports = Trainer(AptObjective(denoiser, lora, shown, settings), settings).run()
                for _ in range(steps):
                    next(reports)

    return run


METHODS = {"infusion": infusion, "lora": lora, "own lora": partial(apt, restrained=False), "apt": apt}
METHODS |= {f"{name}, checkpointing": partial(METHODS[name], checkpointing=True) for name in ("infusion", "own lora")}


def memory(run: Callable[[int], None], steps: int) -> float:
    """MB that a run of so many steps takes beyond the loaded model, in this process."""
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        run(steps)
        return (torch.cuda.max_memory_allocated() - held) / MB
    import resource

    held = psutil.Process().memory_info().rss
    run(steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held) / MB


def main() -> None:
    edge, batch, steps, repeats = (int(v) for v in sys.argv[1:5])
    load_pack()
    model, clip = build()
    latents = torch.randn(batch, 4, edge, edge)
    runs = {name: make(model, clip, latents) for name, make in METHODS.items()}
    if len(sys.argv) > 5:
        gc.collect()
        print(memory(runs[sys.argv[5]], steps))
        return
    # Setting up is not training: the difference of a long and a short run is.
    long = take_turns({name: lambda run=run: run(steps + 1) for name, run in runs.items()}, repeats)
    short = take_turns({name: lambda run=run: run(1) for name, run in runs.items()}, repeats)
    print(json.dumps({name: (long[name] - short[name]) / steps for name in METHODS}))


if __name__ == "__main__":
    main()
