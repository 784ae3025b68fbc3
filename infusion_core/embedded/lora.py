"""Training a LoRA, restrained or plain, on a diffusers model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor, nn

from ..captions import said_of
from ..errors import InfusionError
from ..lora import LoraSet
from ..lora_layers import Targets, text_layer, unet_layer
from ..training.apt import AptObjective, AptSettings
from ..training.engine import Trainer
from ..training.shown import Captions, EncodedCaptions, LiveCaptions, Shown
from ..training.state import TrainState
from .model import EmbeddedModel
from .subject import SubjectPhotos
from .text import TextPath
from .variants import encoded


def layers_of(model: EmbeddedModel, targets: Targets, text: bool) -> dict[str, nn.Module]:
    """The layers of a model that get matrices, by name.

    Args:
        model: a diffusers model.
        targets: of the UNet.
        text: those of the text encoders too.
    """
    found = {unet_layer(path, targets): module for path, module in model.denoiser.unet.named_modules()}
    encoders = model.text.encoders if text else ()
    for number, encoder in enumerate(encoders):
        found |= {text_layer(path, number, len(encoders)): module for path, module in encoder.model.named_modules()}
    return {name: module for name, module in found.items() if name is not None}


def captions_for(text: TextPath, captions: Sequence[str], live: bool) -> Captions:
    """Captions that are all of one context length.

    Args:
        text: the model's.
        captions: what is said.
        live: the text encoder is trained.
    """
    read = text.encode_alike(captions)
    if live:
        chunks = text.chunks_of(read[0])
        return LiveCaptions(
            len(captions), lambda row: text.encode(captions[row], chunks=chunks, live=True).conditioning
        )
    return EncodedCaptions([one.conditioning for one in read])


def apt_trainer(
    model: EmbeddedModel,
    photos: Sequence[Image.Image] | SubjectPhotos,
    captions: Sequence[str],
    settings: AptSettings,
    class_pictures: Sequence[Image.Image] = (),
    class_captions: Sequence[str] = (),
    phrase: str = "",
    state: TrainState | None = None,
) -> Trainer[dict[str, Tensor]]:
    """The engine on an `AptObjective`, whose `lora` must be installed while it runs.

    Args:
        model: the base model, which is not changed.
        photos: of the subject, with captions and masks where there are any.
        captions: any of them is said of any photo that has none of its own.
        settings: how to train.
        class_pictures: of other members of the class (DreamBooth's prior preservation).
        class_captions: said of them.
        phrase: what is said for the subject where a photo's own caption has ``{}``.
        state: of an interrupted run with the same inputs.

    Raises:
        InfusionError: no photos or captions, pictures of the class without captions, or see `AptObjective`.
    """
    given = SubjectPhotos.of(photos)
    if not captions or (class_pictures and not class_captions):
        raise InfusionError("no captions; give at least one, such as 'a photo of sks cat'")
    settings = replace(settings, restraint=settings.restraint.on(model.temperature, model.augmentation))
    live = settings.text_rate > 0
    lora = LoraSet(layers_of(model, settings.targets, live), settings.rank, settings.alpha, settings.seed)
    latents, masks = encoded(model, given.pictures, settings.restraint, settings.seed, given.masks)
    every, said = said_of(given.captions, given.names, captions, phrase, needed=False)
    shown = Shown(latents, captions_for(model.text, every, live), masks, said)
    prior = None
    if class_pictures:
        others = model.encode(list(class_pictures))[:, None]
        prior = Shown(others, captions_for(model.text, class_captions, live))
    return Trainer(AptObjective(model.denoiser, lora, shown, settings, prior), settings, state)
