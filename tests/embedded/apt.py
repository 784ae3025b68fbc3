"""Small LoRA trainings, and what a pass draws at random."""

from __future__ import annotations

import torch

from infusion_core.embedded.lora import captions_for, layers_of
from infusion_core.lora import UP, LoraSet
from infusion_core.training.apt import AptObjective, AptSettings
from infusion_core.training.engine import Trainer
from infusion_core.training.overfitting import UNRESTRAINED
from infusion_core.training.shown import Shown

SEEDS_APART = 1_000_003
CAPTIONS = ("a photo of a dog", "a dog on the beach")
SETTINGS = AptSettings(
    steps=4, learning_rate=1e-2, batch_size=3, rank=2, alpha=4.0, seed=7, snapshot_every=100, times="uniform",
    restraint=UNRESTRAINED, stabilisation=0.0, alignment=0.0, validation_draws=0,
)  # fmt: skip


def latents(count=2, variants=0, seed=1):
    return torch.randn(count, 1 + variants, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def lora_of(model, settings=SETTINGS, size=0.0):
    lora = LoraSet(
        layers_of(model, settings.targets, settings.text_rate > 0), settings.rank, settings.alpha, settings.seed
    )
    generator = torch.Generator().manual_seed(3)
    for name, tensor in lora.tensors.items():
        if name.endswith(UP):
            tensor.data.normal_(0, size, generator=generator) if size else None
    return lora


def objective(model, settings=SETTINGS, shown=None, size=0.0, kind=AptObjective, **more):
    shown = shown or Shown(latents(), captions_for(model.text, CAPTIONS, settings.text_rate > 0))
    return kind(model.denoiser, lora_of(model, settings, size), shown, settings, **more)


def trained(made, settings=SETTINGS, state=None, stop=None):
    trainer = Trainer(made, settings, state)
    reports = []
    with made.lora.installed():
        for report in trainer.run():
            reports.append(report)
            if report.step == stop:
                break
    return trainer, reports


def draws(generator, pictures, settings=SETTINGS, variants=None):
    """What a pass draws, in the order that keeps runs repeatable."""
    size = settings.batch_size
    rows = torch.randint(pictures, (size,), generator=generator)
    captions = torch.randint(len(CAPTIONS), (size,), generator=generator).tolist()
    times = torch.randint(1000, (size,), generator=generator)
    eps = torch.randn(size, 4, 8, 8, generator=generator)
    return rows, captions, times, eps


def texts(model, captions):
    return torch.cat([model.text.encode(CAPTIONS[i]).conditioning.context for i in captions])
