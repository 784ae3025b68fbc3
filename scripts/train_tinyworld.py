"""Train TinyWorld's text encoder and UNet together, from nothing, on captioned random scenes.

    python scripts/train_tinyworld_vae.py
    python scripts/train_tinyworld.py --steps 10000

A stopped run goes on from its last checkpoint. The weights in use are the exponential moving average.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from infusion_core.attention import Plan
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.text import WordTokenizer
from infusion_core.embedded.tinyworld import words
from infusion_core.embedded.tinyworld.captions import OPENINGS, caption, random_aspects, random_scene
from infusion_core.embedded.tinyworld.concepts import HELD_OUT_LOOKS
from infusion_core.embedded.tinyworld.painting import paint, silhouette
from infusion_core.embedded.tinyworld.world import Scene
from infusion_core.embedded.unet import SiteProcessor
from infusion_core.injection import Injection
from infusion_core.residuals import ConceptResidual
from infusion_core.sites import site_from_module

WIDTH = 128  # of the text context
WORD_LIST = words.tokenizer_file()
TOKENIZER = WordTokenizer(WORD_LIST["words"], words.START, words.END, words.LENGTH)


def build_unet() -> UNet2DConditionModel:
    """SD1.5's structure in small: two levels, one block each, seven cross-attention sites."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
    )


def build_text_encoder() -> CLIPTextModel:
    """CLIP's causal text encoder in small."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words.VOCABULARY_SIZE,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=words.LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=words.START,
            eos_token_id=words.END,
            pad_token_id=words.END,
        )
    )


@torch.no_grad()
def encode_scenes(vae: AutoencoderTiny, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16) and, for the loss, how much of each cell things cover (N, 1, 16, 16)."""
    latents, covers = [], []
    for start in tqdm(range(0, len(scenes), 50), desc="encode scenes", mininterval=10):
        part = scenes[start : start + 50]
        pixels = torch.stack([torch.from_numpy(paint(s)) for s in part]).permute(0, 3, 1, 2)
        latents.append(vae.encode(pixels * 2 - 1).latents.half())
        cover = torch.stack([sum(torch.from_numpy(silhouette(t)) for t in s.things).clamp(max=1) for s in part])
        covers.append(nn.functional.avg_pool2d(cover[:, None], 8).half())
    return torch.cat(latents).contiguous(), torch.cat(covers).contiguous()


@dataclass(frozen=True)
class Read:
    """What the network reads: text states (B, 77, WIDTH), and changes (M, WIDTH) that only values see."""

    states: Tensor
    changes: Tensor
    rows: Tensor
    positions: Tensor


def read(text_encoder: CLIPTextModel, scenes: list[Scene], rng: Random) -> Read:
    """Random captions of scenes; one in ten is empty, for classifier-free guidance.

    Of the captions that tell the look, most show the network the states of the same caption *without* the look, but
    for each noun's state: in a third of them as a whole, in the others in the values alone. So the noun's value
    must carry the look, as "siamese" carries a cat's; otherwise the network reads it off the colour words and a noun's
    value has no say in it.
    """
    texts, shown, moves = [], [], []  # moves: row, noun's position in the told text and in the shown text, whole or not
    for row, scene in enumerate(scenes):
        say, opening = random_aspects(rng), rng.choice(OPENINGS)
        texts.append("" if rng.random() < 0.1 else caption(scene, say, opening))
        shown.append(texts[-1])
        if texts[-1] and "look" in say and rng.random() < 0.7:
            shown[-1] = caption(scene, say - {"look"}, opening)
            whole = rng.random() < 0.33
            for thing in scene.things:
                at = (text.split().index(thing.shape) + 1 for text in (texts[-1], shown[-1]))
                moves.append((row, *at, whole))
    ids = torch.tensor([TOKENIZER.frame(TOKENIZER.split(t)[0]) for t in texts + shown])
    told, states = text_encoder(ids).last_hidden_state.chunk(2)
    rows, from_, to, whole = torch.tensor(moves, dtype=torch.long).reshape(-1, 4).T
    changes = told[rows, from_] - states[rows, to]
    whole = whole.bool()
    states = states.index_put((rows[whole], to[whole]), told[rows[whole], from_[whole]])
    return Read(states, changes[~whole], rows[~whole], to[~whole])


class ValueChanges:
    """Lets a network in training read changes that only the values see, the way a concept's residual acts."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._attention = {
            site_from_module(name.removesuffix(".attn2"), 1, module.to_v.out_features): module
            for name, module in unet.named_modules()
            if name.endswith(".attn2")
        }

    def install(self, text: Read) -> None:
        """Put the changes in place for the next forward pass."""
        tensors = {site.name: text.changes[None] for site in self._attention}
        residual = ConceptResidual("noun", "layer", tensors, "tinyworld", WIDTH)
        entries = torch.arange(len(text.rows))
        concept = LoadedConcept("noun", residual)
        injection = Injection(concept, text.rows, text.positions, entries, torch.zeros_like(entries))
        for site, module in self._attention.items():
            module.processor = SiteProcessor(site, Plan(injections=[injection]))


class Whereabouts:
    """An auxiliary loss: every feature map must tell where its cells are, read by a linear probe.

    Only zero padding tells a convolutional network where it is. Left to itself it soon learns the distance to the edge
    ("center" or not) and for thousands of steps not the direction ("left" or "right").
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._features: list[Tensor] = []
        widths = {unet.down_blocks[0]: 64, unet.down_blocks[1]: 128, unet.mid_block: 128, unet.up_blocks[0]: 128}
        self._probes = nn.ModuleList(nn.Conv2d(width, 2, 1) for width in widths.values())
        self._optimizer = torch.optim.AdamW(self._probes.parameters(), lr=1e-2)
        for module in widths:
            module.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._features.append(output[0] if isinstance(output, tuple) else output)

    def loss(self) -> Tensor:
        """Mean squared error of the coordinates, each in [-1, 1], over the features of the last forward pass."""
        errors = []
        for probe, feature in zip(self._probes, self._features, strict=True):
            side = torch.linspace(-1, 1, feature.shape[-1])
            wanted = torch.stack(torch.meshgrid(side, side, indexing="ij"))
            errors.append((probe(feature) - wanted).square().mean())
        self._features.clear()
        return torch.stack(errors).mean()

    def step(self) -> None:
        """Update the probes."""
        self._optimizer.step()
        self._optimizer.zero_grad()


def learning_rate_factor(done: float, warm: float = 0.03) -> float:
    """Linear warm-up, then half a cosine to 1% of the peak; `done` runs from 0 to 1."""
    if done < warm:
        return done / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def save_checkpoint(path: Path, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Everything a resumed run needs: weights, their average and the optimizer's moments."""
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(ema.shadow_params)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step), "ema_step": str(ema.optimization_step)})
    partial.replace(path)


def load_checkpoint(path: Path, model: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; returns the step it was written at."""
    with safe_open(path, "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    ema.shadow_params = [tensors[f"ema.{i}"] for i in range(len(ema.shadow_params))]
    ema.optimization_step = int(meta["ema_step"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(meta["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("out/tinyworld/vae"))
    parser.add_argument("--out", type=Path, default=Path("out/tinyworld/base"))
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="a folder with unet and text_encoder to go on from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    rng = Random(args.seed)
    scenes = [random_scene(rng, HELD_OUT_LOOKS) for _ in range(args.scenes)]
    cache = args.out / "scenes.safetensors"
    if not cache.exists():
        latents, covers = encode_scenes(AutoencoderTiny.from_pretrained(args.vae).eval(), scenes)
        save_file({"latents": latents, "covers": covers}, cache)
    data = load_file(cache)
    latents, covers = data["latents"], data["covers"]

    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder()})
    if args.start:
        model["unet"] = UNet2DConditionModel.from_pretrained(args.start, subfolder="unet")
        model["text_encoder"] = CLIPTextModel.from_pretrained(args.start, subfolder="text_encoder")
    params = list(model.float().train().parameters())
    ema = EMAModel(params, decay=0.9985, use_ema_warmup=True, power=0.8)
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    noise = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    # Plain epsilon MSE hardly sees the high noise levels, where text decides layout and appearance; this weight makes
    # it the v-prediction loss up to a cap. The minimum is the same.
    weights = (1 / noise.alphas_cumprod).clamp(max=40.0)
    weights = weights / weights.mean()
    checkpoint = args.out / "checkpoint.safetensors"
    first = load_checkpoint(checkpoint, model, ema, optimizer) if checkpoint.exists() else 0
    torch.manual_seed(args.seed + first)
    rng = Random(args.seed + first)

    value_changes = ValueChanges(model["unet"])
    whereabouts = Whereabouts(model["unet"])
    started, running = time.monotonic(), 0.0
    for step in range(first + 1, args.steps + 1):
        picks = torch.randint(len(scenes), (args.batch,)).tolist()
        text = read(model["text_encoder"], [scenes[i] for i in picks], rng)
        value_changes.install(text)
        clean, cover = latents[picks].float(), covers[picks].float()
        eps, t = torch.randn_like(clean), torch.randint(1000, (args.batch,))
        predicted = model["unet"](noise.add_noise(clean, eps, t), t, text.states).sample
        error = (predicted - eps).square() * (1 + 3 * cover)
        loss = (error.mean(dim=(1, 2, 3)) * weights[t]).mean()
        lost = whereabouts.loss()
        (loss + 0.05 * lost).backward()
        whereabouts.step()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate_factor(step / args.steps)
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(params)
        running += loss.item()
        if step % 100 == 0:
            print(
                f"step {step} loss {running / 100:.4f} whereabouts {lost.item():.4f} {time.monotonic() - started:.0f}s",
                flush=True,
            )
            running = 0.0
        if step % 500 == 0 or step == args.steps:
            save_checkpoint(checkpoint, model, ema, optimizer, step)
            ema.store(params)
            ema.copy_to(params)
            model["unet"].save_pretrained(args.out / "unet")
            model["text_encoder"].save_pretrained(args.out / "text_encoder")
            (args.out / "tokenizer").mkdir(exist_ok=True)
            (args.out / "tokenizer" / "words.json").write_text(json.dumps(WORD_LIST, indent=1) + "\n")
            ema.restore(params)


if __name__ == "__main__":
    main()
