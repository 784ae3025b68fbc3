"""What the node APT Train does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ..infusion_core.atomic import write_atomic
from ..infusion_core.captions import CAPTION_TEMPLATES, class_word, fill
from ..infusion_core.lora import LoraSet
from ..infusion_core.lora_output import TrainedLora, lora_bytes, lora_tensors
from ..infusion_core.tensor_file import read_tensors
from ..infusion_core.training.apt import AptObjective, AptSettings
from ..infusion_core.training.engine import Trainer
from ..infusion_core.training.gauges import lora_meter
from ..infusion_core.training.overfitting import Restraint, checked_level
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.shapes import on_shapes
from ..infusion_core.training.shown import Said, Shown
from ..infusion_core.training.stopping import Finish, Stop, Take
from .encoding import Encoding
from .host.denoiser import training
from .host.lora import captions_for, layers_of, text_training
from .host.metering import unsaid_of
from .host.preview import draw_as_is
from .pictures import groups_of, in_order, squares_of, thumbnail_of
from .plot import loss_plot, overfitting_plot
from .previews import Previews, prompts_of
from .resuming import hash_of
from .room import make_room
from .runs import Run
from .snapshots import lora_run
from .training_inputs import CROPS
from .widgets import captions_of, lines_of

_SNAPSHOT_EVERY = AptSettings().snapshot_every


def train(
    model: Any, clip: Any, vae: Any, images: Sequence[Tensor], identifier: str, word: str, alpha: float,
    resolution: int, preview_every: int, restrain: bool, augment: bool, reweight: bool, temperature: float,
    masks: Sequence[Tensor] | None = None,
    prior_images: Sequence[Tensor] | None = None, captions: Sequence[str] = ("",), continue_from: Any = None,
    stop_at: float = 0.0, checkpointing: bool = False, flip: bool = False, preview_prompts: str = "",
    crop: str = CROPS[0], stop: Stop = "never", take: Take = "last", **given: Any,
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
    asked = prompts_of(preview_prompts, phrase)
    folder = lora_run(phrase)
    folder.check()
    encode = Encoding(model, vae)
    groups = groups_of(images, resolution, encode.step(resolution), crop == CROPS[1])
    photos = in_order(groups)
    of_photos, said = captions_of(captions, len(photos), phrase, flip, needed=False)
    of_class = fill((tuple(lines_of(captions[0])) if said is None else ()) or CAPTION_TEMPLATES, word)
    seen = encode.seen(groups, masks, said, settings.restraint, settings.seed, flip)
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
        one, *more = [shown(some.latents, of_photos, some.weights, some.said) for some in seen]
        first = AptObjective(denoiser, lora, one, settings, prior)
        members = [first, *map(first.on, more)]
        trainer = Trainer(on_shapes(members, [len(some.latents) for some in seen]), settings)
        unsaid = unsaid_of(denoiser.model, clip, class_word(word), phrase, seen[0].latents[:, 0])
        record = RunRecord(settings, len(photos), resolution, meter=lora_meter(trainer, first, unsaid))
        latent, thumbnail = seen[0].latents[:1, 0].cpu(), thumbnail_of(groups[0].pictures)

        def trained() -> TrainedLora:
            facts = record.facts(trainer.step, phrase)
            return TrainedLora(trainer.learned(), lora.alpha, denoiser.base, phrase, facts, thumbnail)

        def drawn(prompts: Sequence[str]) -> list[Tensor]:
            """A picture of each prompt; the network stands ready for training again afterwards."""
            pictures = draw_as_is(denoiser.model, clip, vae, prompts, latent)
            denoiser.load()
            return pictures

        def write(path: Path) -> None:
            write_atomic(path, lora_bytes(trained()))

        told = {
            **settings.told, "node": "APTTrain", "phrase": phrase, "captions": of_photos, "said": said, "word": word,
            "photos": hash_of(photos), "masks": hash_of(masks), "flip": flip, "prior": hash_of(class_squares),
        }  # fmt: skip
        with lora.installed():
            previews = Previews(asked, drawn if preview_every else None)
            make_room(denoiser, trainer, [clip.patcher] if live else [])
            run = Run(trainer, record, previews, write, folder, told, first.measured, stop_at, Finish(stop, take))
            run.train()
        best = run.taken()
        state = lora_tensors(trained()) if best is None else read_tensors(best.read_bytes())[0]
    patched, infused = comfy.sd.load_lora_for_models(model, clip, state, 1.0, 1.0)
    curves = overfitting_plot(record.indicator), loss_plot(record)
    return io.NodeOutput(patched, infused, state, *curves, phrase, previews.output)
