"""What the node APT Train does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..infusion_core.atomic import write_atomic
from ..infusion_core.captions import CAPTION_TEMPLATES, class_word, fill
from ..infusion_core.lora import LoraSet
from ..infusion_core.lora_output import TrainedLora, lora_bytes, lora_tensors
from ..infusion_core.training.apt import AptObjective, AptSettings
from ..infusion_core.training.engine import Trainer
from ..infusion_core.training.overfitting import Restraint, checked_level
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.shown import Said, Shown
from .encoding import Encoding
from .host.denoiser import training
from .host.lora import captions_for, layers_of, text_training
from .host.preview import draw_as_is
from .pictures import first_of, squares_of, thumbnail_of
from .plot import loss_plot, overfitting_plot
from .resuming import hash_of
from .room import make_room
from .runs import Run
from .snapshots import lora_run
from .widgets import captions_of, lines_of

_SNAPSHOT_EVERY = AptSettings().snapshot_every


def train(
    model: Any, clip: Any, vae: Any, images: Sequence[Tensor], identifier: str, word: str, alpha: float,
    resolution: int, preview_every: int, restrain: bool, augment: bool, reweight: bool, temperature: float,
    masks: Sequence[Tensor] | None = None,
    prior_images: Sequence[Tensor] | None = None, captions: Sequence[str] = ("",), continue_from: Any = None,
    stop_at: float = 0.0, checkpointing: bool = False, flip: bool = False, **given: Any,
) -> io.NodeOutput:  # fmt: skip
    """Train with a progress bar and previews; an interrupt keeps the last snapshot."""
    settings = AptSettings(
        alpha=alpha or None,
        restraint=Restraint(measure=True, augment=augment, reweight=reweight, temperature=temperature),
        snapshot_every=preview_every or _SNAPSHOT_EVERY, **given,
    )  # fmt: skip
    settings = settings if restrain else settings.unrestrained
    checked_level(stop_at, settings.compares)
    phrase = f"{identifier.strip()} {class_word(word)}".strip()
    folder = lora_run(phrase)
    folder.check()
    squares = squares_of(images, resolution)
    of_photos, said = captions_of(captions, len(squares), phrase, flip, needed=False)
    of_class = fill((tuple(lines_of(captions[0])) if said is None else ()) or CAPTION_TEMPLATES, word)
    encode = Encoding(model, vae)
    latents, weights = encode.photos(squares, masks, settings.restraint, settings.seed, flip)
    class_squares = None if prior_images is None else squares_of(prior_images, resolution)
    others = None if class_squares is None else encode.pictures(class_squares)[:, None]
    live = settings.text_rate > 0
    with training(model, checkpointing) as denoiser, text_training(clip) if live else nullcontext():

        def here(tensor: Tensor) -> Tensor:
            return tensor.clone().to(denoiser.device, torch.float32)

        def shown(pictures: Tensor, told: Sequence[str], masks: Tensor | None, said: Said | None) -> Shown:
            pictures = here(pictures)
            read = captions_for(denoiser.model, clip, told, pictures[:, 0], live)
            return Shown(pictures, read, None if masks is None else here(masks), said)

        lora = LoraSet(
            layers_of(denoiser.model, clip, settings.targets, live), settings.rank, settings.alpha, settings.seed
        )
        if continue_from is not None:
            lora.load(continue_from)
        prior = None if others is None else shown(others, of_class, None, None)
        objective = AptObjective(denoiser, lora, shown(latents, of_photos, weights, said), settings, prior)
        trainer, record = Trainer(objective, settings), RunRecord(settings, len(squares), resolution)
        latent, thumbnail = latents[:1, 0].cpu(), thumbnail_of(squares)

        def trained() -> TrainedLora:
            facts = record.facts(trainer.step, phrase)
            return TrainedLora(trainer.learned(), lora.alpha, denoiser.base, phrase, facts, thumbnail)

        def drawn() -> Image.Image:
            """A picture of the subject; the network stands ready for training again afterwards."""
            picture = first_of(draw_as_is(denoiser.model, clip, vae, f"a photo of a {phrase}", latent))
            denoiser.load()
            return picture

        def write(path: Path) -> None:
            write_atomic(path, lora_bytes(trained()))

        told = {
            **settings.told, "node": "APTTrain", "phrase": phrase, "captions": of_photos, "said": said, "word": word,
            "photos": hash_of(squares), "masks": hash_of(masks), "flip": flip, "prior": hash_of(class_squares),
        }  # fmt: skip
        indicator = objective.indicator if settings.compares else None
        with lora.installed():
            make_room(denoiser, trainer, [clip.patcher] if live else [])
            Run(trainer, record, drawn if preview_every else None, write, folder, told, indicator, stop_at).train()
        state = lora_tensors(trained())
    patched, infused = comfy.sd.load_lora_for_models(model, clip, state, 1.0, 1.0)
    curves = overfitting_plot(record.indicator), loss_plot(record.losses, record.validation)
    return io.NodeOutput(patched, infused, state, *curves, phrase)
