"""What training a concept costs against DreamBooth with LoRA, in time and in memory, measured in one run.

    pip install -e ".[standalone,bench]"
    python benchmarks/training.py --host embedded --size sd15
    python benchmarks/training.py --host comfyui     # against ComfyUI's own Train LoRA node, rank 8

Both train on the same network, latents and text states. Infusion is `infusion_core.training` with its own settings.
LoRA is the step of diffusers' train_dreambooth_lora.py: rank 8 on to_q, to_k, to_v and to_out.0 of every attention
layer, AdamW, clipped gradients, mixed precision on CUDA; what that script may add (autoencoder, text encoder, prior
preservation) is left out.

Seconds are medians of steps that take turns. Memory is taken in a fresh process per method: the peak while it trains
less what was held when the network stood ready; on CUDA allocated memory, on a CPU the resident set. Beside it stands
what training announces before its first step, and what PyTorch's allocator then gave out.
"own lora" and "apt" are this project's LoRA trainer with everything off and everything on: on LoRA's layers, in
ComfyUI on the transformer blocks (ComfyUI's trainer adapts every layer).
The last line is one JSON object of ratios, Infusion's figure over LoRA's: time_vs_lora, memory_vs_lora; those of the
LoRA trainer, own_lora_... and apt_...; ..._checkpointing_time and _memory, over the same without checkpointing;
..._estimate, the memory that training announces before its first step over what the allocator gave out; and (embedded)
time_without_maps, what a step of Infusion takes without map replacement over what it takes with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from common import build, parser
from diffusers.training_utils import cast_training_params
from in_host import run_in_host
from torch import Tensor
from torch.nn import functional as F
from turns import RANK, device, most_allocated, take_turns

from infusion_cli.output import peak_rss_mb
from infusion_core.denoiser import Conditioning, EncodedPrompt
from infusion_core.embedded.unet import UNetDenoiser
from infusion_core.lora import LoraSet
from infusion_core.lora_layers import unet_layer
from infusion_core.training.apt import AptObjective, AptSettings
from infusion_core.training.engine import Trainer
from infusion_core.training.footprint import footprint
from infusion_core.training.residual import ResidualSettings, residual_trainer
from infusion_core.training.shown import EncodedCaptions, Shown

try:
    import psutil
    from peft import LoraConfig
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed; run: pip install -e '.[standalone,bench]'")

MB = 2**20


@contextmanager
def infusion(
    denoiser: UNetDenoiser, latents: Tensor, text: Tensor, replace_maps: bool = ResidualSettings.replace_maps
) -> Iterator[Trainer[Any]]:
    """Infusion's trainer with its own settings."""
    prompt = EncodedPrompt(Conditioning(text[:1]), (((5,),),))
    settings = ResidualSettings(steps=10**6, batch_size=len(latents), snapshot_every=10**6, replace_maps=replace_maps)
    yield residual_trainer(denoiser, latents, [prompt], "word", settings)


def lora(denoiser: UNetDenoiser, latents: Tensor, text: Tensor) -> Generator[object]:
    """Training steps of DreamBooth-LoRA."""
    unet, variances = denoiser.unet, denoiser.sigmas.square()
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    cast_training_params(unet)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-2)
    keep = (1 / (1 + variances)).sqrt().to(latents)  # share of the picture left at each timestep
    unet.train()
    while True:
        noise = torch.randn_like(latents)
        times = torch.randint(len(keep), (len(latents),), device=latents.device)
        kept = keep[times].reshape(-1, 1, 1, 1)
        noised = kept * latents + (1 - kept.square()).sqrt() * noise
        with torch.autocast(latents.device.type, torch.float16, enabled=latents.is_cuda):
            predicted = unet(noised, times, encoder_hidden_states=text).sample
        F.mse_loss(predicted.float(), noise.float()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


@contextmanager
def apt(denoiser: UNetDenoiser, latents: Tensor, text: Tensor, restrained: bool = True) -> Iterator[Trainer[Any]]:
    """APT's trainer on the layers of `lora`, with everything on or everything off."""
    settings = AptSettings(steps=10**6, batch_size=len(latents), snapshot_every=10**6, rank=RANK)
    settings = settings if restrained else settings.unrestrained
    shown = Shown(latents[:, None], EncodedCaptions([Conditioning(text[:1])]))
    named = {unet_layer(path, settings.targets): module for path, module in denoiser.unet.named_modules()}
    own = LoraSet({name: module for name, module in named.items() if name}, settings.rank)
    with own.installed():
        yield Trainer(AptObjective(denoiser, own, shown, settings), settings)


CHECKPOINTING = ", checkpointing"
WITHOUT_MAPS = "infusion, no map replacement"  # timed only, on the embedded host
OURS = {"infusion": infusion, "own lora": partial(apt, restrained=False), "apt": apt}
METHODS = ("infusion", "lora", "own lora", "apt")
LESS = tuple(f"{name}{CHECKPOINTING}" for name in ("infusion", "own lora"))
TIMED = (*METHODS, *LESS, WITHOUT_MAPS)


def given(denoiser: UNetDenoiser, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random latents and text states."""
    place = {"device": denoiser.device, "dtype": denoiser.unet.dtype}
    latents = torch.randn(args.batch, 4, args.latent, args.latent, **place)
    return latents, torch.randn(1, 77, denoiser.base.context_width, **place).repeat(args.batch, 1, 1)


def trainer_of(method: str, denoiser: UNetDenoiser, args: argparse.Namespace) -> AbstractContextManager[Trainer[Any]]:
    """The trainer of a method of ours."""
    made = partial(infusion, replace_maps=False) if method == WITHOUT_MAPS else OURS[method.removesuffix(CHECKPOINTING)]
    return made(denoiser, *given(denoiser, args))


def steps_of(method: str, denoiser: UNetDenoiser, args: argparse.Namespace) -> Generator[object]:
    """The method's training steps; the network is left as it was between them."""
    if method == "lora":
        yield from lora(denoiser, *given(denoiser, args))
    with trainer_of(method, denoiser, args) as trainer:
        steps = trainer.run()
        while True:
            denoiser.checkpointing = method.endswith(CHECKPOINTING)
            done = next(steps)
            denoiser.checkpointing = False
            yield done


def estimates(args: argparse.Namespace) -> dict[str, float]:
    """MB that each method of ours says it will take beyond the network."""
    denoiser, told = build(args.size)[0], dict[str, float]()
    for method in (*OURS, *LESS):
        denoiser.checkpointing = method.endswith(CHECKPOINTING)
        with trainer_of(method, denoiser, args) as trainer:
            found = footprint(trainer, denoiser, 0)
        assert found is not None
        told[method] = found.beside / MB
    return told


def own_memory(args: argparse.Namespace) -> tuple[float, float]:
    """MB that training takes beyond the network, in this process: the process in all, and PyTorch's allocator."""
    denoiser, _ = build(args.size)
    small = steps_of(args.memory_of, build("tiny")[0], argparse.Namespace(latent=8, batch=1))
    next(small)  # what libraries load at their first step is not training's
    small.close()
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss

    def train() -> None:
        steps = steps_of(args.memory_of, denoiser, args)
        for _ in range(args.steps):
            next(steps)
        steps.close()

    train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss_mb() * MB
    return (peak - held) / MB, most_allocated(train) / MB if args.memory_of in (*OURS, *LESS) else 0.0


def memory(method: str, arguments: Sequence[str]) -> tuple[float, float]:
    """`own_memory` of a fresh process."""
    command = [sys.executable, __file__, *arguments, "--memory-of", method]
    took, allocated = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return took, allocated


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=3, help="steps over which the peak of memory is taken")
    options.add_argument("--estimates", action="store_true", help="print what training announces, MB, and stop")
    options.add_argument("--memory-of", choices=(*METHODS, *LESS), help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    if args.host == "comfyui":
        in_comfyui(args)
        return
    if args.memory_of:
        print(json.dumps(own_memory(args)))
        return
    if args.estimates:
        print(json.dumps({method: round(megabytes) for method, megabytes in estimates(args).items()}))
        return
    line = sys.argv[1:] if arguments is None else arguments
    found = {method: memory(method, line) for method in (*METHODS, *LESS)}
    megabytes, allocated = ({m: row[i] for m, row in found.items() if row[i]} for i in range(2))
    expected = estimates(args)
    frozen = build(args.size)[0]  # LoRAs are put into a network of their own
    adapted = ("lora", "own lora", "apt", "own lora, checkpointing")
    running = {m: steps_of(m, build(args.size)[0] if m in adapted else frozen, args) for m in TIMED}
    seconds = take_turns({m: lambda steps=steps: next(steps) for m, steps in running.items()}, args.repeats)
    print_table(
        f"{args.size}, batch {args.batch}, {args.latent}x{args.latent} latents, {device()}",
        seconds,
        megabytes,
        allocated,
        expected,
    )


def in_comfyui(args: argparse.Namespace) -> None:
    """The same figures in ComfyUI, against its own LoRA trainer; SD1.5's geometry."""
    if args.size != "sd15":
        sys.exit("in ComfyUI only --size sd15 is measured")
    given = (args.latent, args.batch, args.steps, args.repeats)
    script = "in_comfyui_training.py"
    found = {
        m: json.loads(run_in_host(script, *given, m).splitlines()[-1]) for m in (*METHODS, *LESS, "lora, checkpointing")
    }
    seconds = json.loads(run_in_host(script, *given).splitlines()[-1])
    title = f"ComfyUI, sd15, batch {args.batch}, {args.latent}x{args.latent} latents, {device()}"
    megabytes, allocated, expected = ({m: row[i] for m, row in found.items() if row[i]} for i in range(3))
    print_table(title, seconds, megabytes, allocated, expected)


def print_table(
    title: str,
    seconds: Mapping[str, float],
    megabytes: Mapping[str, float],
    allocated: Mapping[str, float],
    expected: Mapping[str, float],
) -> None:
    """Seconds and memory per method, and one JSON object of ratios on the last line."""
    print(title)
    for method in dict.fromkeys((*seconds, *megabytes)):
        took = f"{seconds[method]:8.3f} s/step" if method in seconds else " " * 15
        held = f"{megabytes[method]:8.0f} MB" if method in megabytes else ""
        if method in expected:
            held += f", {allocated[method]:.0f} allocated, {expected[method]:.0f} announced"
        print(f"{method:>28}  {took}  {held}")
    ratios = {
        "time_vs_lora": seconds["infusion"] / seconds["lora"],
        "memory_vs_lora": megabytes["infusion"] / megabytes["lora"],
    }
    for method, name in (("own lora", "own_lora"), ("apt", "apt")):
        ratios[f"{name}_time_vs_lora"] = seconds[method] / seconds["lora"]
        ratios[f"{name}_memory_vs_lora"] = megabytes[method] / megabytes["lora"]
    for less in LESS:
        plain = less.removesuffix(CHECKPOINTING)
        name = plain.replace(" ", "_")
        ratios[f"{name}_checkpointing_time"] = seconds[less] / seconds[plain]
        ratios[f"{name}_checkpointing_memory"] = megabytes[less] / megabytes[plain]
    ratios |= {f"{m.replace(', ', ' ').replace(' ', '_')}_estimate": expected[m] / allocated[m] for m in expected}
    if WITHOUT_MAPS in seconds:
        ratios["time_without_maps"] = seconds[WITHOUT_MAPS] / seconds["infusion"]
    print(json.dumps({name: round(value, 4) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
