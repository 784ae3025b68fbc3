"""Make TinyWorld's base model from nothing: the autoencoder, the text encoder, then the UNet.

    python scripts/train_tinyworld.py --out out/tinyworld

A run that was stopped, at any step, goes on where it was when the same command is given again, and ends in the same
numbers. Ctrl-C and SIGTERM keep all that was done, a crash what was done up to the last 250 steps. The finished model
is in ``weights`` below --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from infusion_cli.console import Interrupt, progress, say
from infusion_core.atomic import write_atomic
from infusion_core.embedded.tinyworld import HELD_OUT_LOOKS, words
from infusion_core.embedded.tinyworld.captions import random_scene
from infusion_core.embedded.tinyworld.painting import paint, silhouette
from infusion_core.embedded.tinyworld.world import SIZE, Scene
from infusion_core.training.engine import Trainer
from infusion_core.training.settings import TrainSettings
from infusion_core.training.state import load_state, save_state
from scripts.tinyworld.autoencoder import AutoencoderObjective
from scripts.tinyworld.text_encoder import TextEncoderObjective, lengthen_rare_words
from scripts.tinyworld.unet import Encoded, UNetObjective

Losses = Callable[[Generator], dict[str, Tensor]]
KEPT_EVERY = 250  # steps
MOST_THINGS = 3  # in a scene
SCHEDULER = DDIMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
    steps_offset=1, timestep_spacing="trailing",
)  # fmt: skip
WISHES = {
    "guidance": 3.0, "steps": 25, "temperature": 75.0, "zoom": 1.4, "turn": 0.0, "canvas": "edge", "device": "cpu",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/tinyworld"))
    parser.add_argument("--autoencoder-steps", type=int, default=4800)
    parser.add_argument("--text-encoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=10000, help="of the UNet")
    parser.add_argument("--scenes", type=int, default=16000, help="that captions and latents are of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--bfloat16", action="store_true", help="faster where the processor has it in hardware")
    args = parser.parse_args()
    keep_to(args.out / "given.json", {k: v for k, v in vars(args).items() if k not in ("out", "device")})
    weights = args.out / "weights"

    if not (weights / "vae").exists():
        how = recipe(args.autoencoder_steps, 2e-3, 100, args.seed)
        vae = train("autoencoder", AutoencoderObjective(args.seed, args.device), how, args.out, args.bfloat16)
        write_network(vae, weights / "vae")
    vae = AutoencoderTiny.from_pretrained(weights / "vae").to(args.device, torch.float32).eval()
    scenes = some_scenes(args.scenes, args.seed)
    if not (weights / "text_encoder").exists():
        how = recipe(args.text_encoder_steps, 1e-3, 100, args.seed)
        reader = train("text encoder", TextEncoderObjective(scenes, args.device), how, args.out, args.bfloat16)
        lengthen_rare_words(reader)
        write_network(reader, weights / "text_encoder")
    reader = CLIPTextModel.from_pretrained(weights / "text_encoder").float()
    data = encoded(vae, scenes, args.out / "scenes.safetensors")
    if not (weights / "unet").exists():
        how = recipe(args.steps, 8e-4, 200, args.seed)
        unet = train("UNet", UNetObjective(data, reader, args.device), how, args.out, args.bfloat16)
        write_network(unet, weights / "unet")
    write_rest(weights)
    say(f"Wrote {weights}")


def recipe(steps: int, rate: float, warmup: int, seed: int) -> TrainSettings:
    """How a network is trained. Also seeds torch, for the weights it begins with."""
    torch.manual_seed(seed)
    return TrainSettings(
        steps=steps, learning_rate=rate, schedule="cosine", warmup_steps=warmup, weight_decay=1e-4,
        clip_norm=1.0, validation_draws=64, snapshot_every=KEPT_EVERY, seed=seed,
    )  # fmt: skip


def keep_to(file: Path, given: dict[str, int]) -> None:
    """Note what a folder's run was given.

    Raises:
        SystemExit: the folder holds a run that was given something else.
    """
    before = json.loads(file.read_text()) if file.exists() else given
    if before != given:
        sys.exit(f"{file.parent} holds a run with {before}; give the same options, take another --out, or remove it")
    write_atomic(file, json.dumps(given).encode())


def train(name: str, objective: Any, settings: TrainSettings, out: Path, bfloat16: bool) -> Any:
    """What an objective has learned after all steps; goes on from the state that an earlier run kept in `out`.

    With `bfloat16`, convolutions and matrix products of the losses are in it, weights and validation not.

    Raises:
        SystemExit: Ctrl-C or SIGTERM stopped it, with its state kept.
    """
    file = out / f"{name.replace(' ', '-')}.safetensors"
    if bfloat16:
        objective.losses = in_bfloat16(objective.losses, next(iter(objective.groups()[0].tensors.values())).device.type)
    trainer = Trainer(objective, settings, load_state(file) if file.exists() else None)
    with Interrupt() as interrupt, progress(name, settings.steps) as advance:
        advance(steps=trainer.step)
        for report in trainer.run():
            advance(note=f"loss {report.loss:.4f}")
            if report.validation_loss is not None:
                print(
                    f"{name} {report.step} loss {report.loss:.4f} validation {report.validation_loss:.5f}", flush=True
                )
            if report.validation_loss is not None or interrupt.asked:
                save_state(file, trainer.state())
            if interrupt.asked:
                break
    if trainer.step < settings.steps:
        say(f"Stopped at step {trainer.step}; the same command goes on from there")
        sys.exit(interrupt.exit_code)
    return trainer.learned()


def in_bfloat16(losses: Losses, device: str) -> Losses:
    """The same losses in mixed precision. Fused attention's backward is slow in bfloat16 on a CPU, plain is not."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # in bfloat16 on any device, whatever the name says

    def mixed(generator: Generator) -> dict[str, Tensor]:
        with torch.autocast(device, torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
            return losses(generator)

    return mixed


def some_scenes(count: int, seed: int) -> list[Scene]:
    """Random scenes of a seed, in none of which a thing has a held-out look."""
    rng = Random(seed)
    return [random_scene(rng, HELD_OUT_LOOKS) for _ in range(count)]


@torch.no_grad()
def encoded(vae: AutoencoderTiny, scenes: list[Scene], cache: Path) -> Encoded:
    """The scenes, encoded; kept in a file."""
    count = len(scenes)
    if not cache.exists():
        latents, covers = [], []
        with progress("encode scenes", count) as advance:
            for start in range(0, count, 50):
                part = scenes[start : start + 50]
                pixels = torch.stack([torch.from_numpy(paint(s)) for s in part]).permute(0, 3, 1, 2)
                latents.append(vae.encode((pixels * 2 - 1).to(vae.device)).latents.half().cpu())
                covers.append(torch.stack([_covers(scene) for scene in part]).half())
                advance(steps=len(part))
        partial = cache.with_suffix(".partial")
        save_file({"latents": torch.cat(latents).contiguous(), "covers": torch.cat(covers).contiguous()}, partial)
        partial.replace(cache)
    tensors = load_file(cache)
    return Encoded(scenes, tensors["latents"], tensors["covers"])


def _covers(scene: Scene) -> Tensor:
    """How much of each latent cell each thing covers, (3, 16, 16)."""
    covered = torch.zeros(MOST_THINGS, SIZE, SIZE)
    for cover, thing in zip(covered, scene.things, strict=False):
        cover[:] = torch.from_numpy(silhouette(thing))
    return nn.functional.avg_pool2d(covered, 8)


def write_network(network: Any, folder: Path) -> None:
    """Write a network in half precision, wholly or not at all."""
    partial = folder.with_suffix(".partial")
    network.half().save_pretrained(partial)
    partial.replace(folder)


def write_rest(folder: Path) -> None:
    """What a model folder holds beside the networks."""
    SCHEDULER.save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file, told in (("tokenizer/words.json", words.tokenizer_file()), ("infusion.json", WISHES)):
        write_atomic(folder / file, (json.dumps(told, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
