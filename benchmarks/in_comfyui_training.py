"""The training benchmark inside ComfyUI, against its own LoRA trainer; started by training.py --host comfyui.

Arguments: latent edge, batch, steps, repeats; then, to measure memory in this process alone,
the method: what it took, what PyTorch's allocator gave out, and what it said it would take, MB.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.append(str(Path(__file__).resolve().parent))

from in_comfyui import PROMPT, WORDS, build, load_pack
from turns import RANK, device, most_allocated, take_turns

MB = 2**20


@contextmanager
def infusion(model: Any, clip: Any, latents: torch.Tensor, steps: int, checkpointing: bool) -> Iterator[Any]:
    """The Infusion Train node's trainer and its denoiser."""
    from infusion_pack.infusion_core.training.residual import ResidualSettings, residual_trainer
    from infusion_pack.nodes.host.denoiser import encode_captions, training

    with training(model, checkpointing) as denoiser:
        prompts = encode_captions(model, clip, [PROMPT], WORDS[0], latents)
        settings = ResidualSettings(steps=steps, batch_size=len(latents), snapshot_every=steps)
        yield residual_trainer(denoiser, latents, prompts, WORDS[0], settings), denoiser


def lora(model: Any, clip: Any, latents: torch.Tensor, steps: int, checkpointing: bool) -> None:
    """So many steps of ComfyUI's Train LoRA node: its defaults in full precision on a CPU."""
    from comfy_extras.nodes_train import TrainLoraNode

    options = {i.id: [getattr(i, "default", None)] for i in TrainLoraNode.define_schema().inputs}
    text = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    chosen = {"rank": RANK, "gradient_checkpointing": checkpointing, "batch_size": len(latents), "steps": steps}
    chosen |= {"training_dtype": "bf16" if device() == "cuda" else "fp32", "lora_dtype": "fp32", "optimizer": "AdamW"}
    given = {"model": model, "latents": {"samples": latents}, "positive": text, "existing_lora": "[None]"}
    TrainLoraNode.execute(**{**options, **{k: [v] for k, v in (chosen | given).items()}})


@contextmanager
def apt(
    model: Any, clip: Any, latents: torch.Tensor, steps: int, checkpointing: bool, restrained: bool = True
) -> Iterator[Any]:
    """The APT Train node's trainer, with everything on or everything off, and its denoiser."""
    from infusion_pack.infusion_core.lora import LoraSet
    from infusion_pack.infusion_core.training.apt import AptObjective, AptSettings
    from infusion_pack.infusion_core.training.engine import Trainer
    from infusion_pack.infusion_core.training.shown import Shown
    from infusion_pack.nodes.host.denoiser import training
    from infusion_pack.nodes.host.lora import captions_for, layers_of

    settings = AptSettings(steps=steps, batch_size=len(latents), snapshot_every=steps, rank=RANK, targets="transformer")
    settings = settings if restrained else settings.unrestrained
    with training(model, checkpointing) as denoiser:
        shown = Shown(latents[:, None], captions_for(denoiser.model, clip, [PROMPT], latents, False))
        lora = LoraSet(layers_of(denoiser.model, clip, settings.targets, False), settings.rank)
        with lora.installed():
            yield Trainer(AptObjective(denoiser, lora, shown, settings), settings), denoiser


CHECKPOINTING = ", checkpointing"
OURS = {"infusion": infusion, "own lora": partial(apt, restrained=False), "apt": apt}
TIMED = ("infusion", "lora", "own lora", "apt", *(f"{m}{CHECKPOINTING}" for m in ("infusion", "own lora")))


def run(method: str, model: Any, clip: Any, latents: torch.Tensor, steps: int) -> None:
    """So many steps of a method."""
    if method.startswith("lora"):
        lora(model, clip, latents, steps, method.endswith(CHECKPOINTING))
        return
    make = OURS[method.removesuffix(CHECKPOINTING)]
    with make(model, clip, latents, steps + 1, method.endswith(CHECKPOINTING)) as (trainer, _):
        reports = trainer.run()
        for _ in range(steps):  # the last step would add a validation pass
            next(reports)


def estimate(method: str, model: Any, clip: Any, latents: torch.Tensor) -> float:
    """MB that a method of ours says it will take beyond the network."""
    from infusion_pack.infusion_core.training.footprint import footprint

    make = OURS[method.removesuffix(CHECKPOINTING)]
    with make(model, clip, latents, 1, method.endswith(CHECKPOINTING)) as (trainer, denoiser):
        found = footprint(trainer, denoiser, 0)
    assert found is not None
    return float(found.beside / MB)


def memory(act: Callable[[], None]) -> float:
    """MB that something takes beyond the loaded model, in this process."""
    if torch.cuda.is_available():
        held = torch.cuda.memory_allocated()
        act()
        return (torch.cuda.max_memory_allocated() - held) / MB
    import resource

    held = psutil.Process().memory_info().rss
    act()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held) / MB


def main() -> None:
    edge, batch, steps, repeats = (int(v) for v in sys.argv[1:5])
    load_pack()
    model, clip = build()
    latents = torch.randn(batch, 4, edge, edge)
    if len(sys.argv) > 5:
        gc.collect()
        training = partial(run, sys.argv[5], model, clip, latents, steps)
        took = memory(training)
        ours = not sys.argv[5].startswith("lora")  # ComfyUI's says nothing
        allocated = most_allocated(training) / MB if ours else 0.0
        print(json.dumps([took, allocated, estimate(sys.argv[5], model, clip, latents) if ours else 0.0]))
        return
    # Setting up is not training: the difference of a long and a short run is.
    long = take_turns({m: partial(run, m, model, clip, latents, steps + 1) for m in TIMED}, repeats)
    short = take_turns({m: partial(run, m, model, clip, latents, 1) for m in TIMED}, repeats)
    print(json.dumps({name: (long[name] - short[name]) / steps for name in TIMED}))


if __name__ == "__main__":
    main()
