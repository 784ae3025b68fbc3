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
from ..training.shapes import Size, on_shapes
from ..training.shown import Captions, EncodedCaptions, LiveCaptions, Shown
from ..training.state import TrainState
from .model import EmbeddedModel, sized
from .subject import SubjectPhotos
from .text import TextPath
from .variants import encoded, sizes_of


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


def captions_for(text: TextPath, captions: Sequence[str], live: bool, size: Size | None = None) -> Captions:
    """Captions that are all of one context length.

    Args:
        text: the model's.
        captions: what is said.
        live: the text encoder is trained.
        size: of the pictures that they are said of; None for the model's square.
    """
    read = text.encode_alike(captions)
    if live:
        chunks = text.chunks_of(read[0])
        return LiveCaptions(
            len(captions), lambda row: sized(text.encode(captions[row], chunks=chunks, live=True).conditioning, size)
        )
    return EncodedCaptions([sized(one.conditioning, size) for one in read])


def apt_trainer(
    model: EmbeddedModel,
    photos: Sequence[Image.Image] | SubjectPhotos,
    captions: Sequence[str],
    settings: AptSettings,
    class_pictures: Sequence[Image.Image] = (),
    class_captions: Sequence[str] = (),
    phrase: str = "",
    state: TrainState | None = None,
    aspect: bool = False,
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
        aspect: photos keep their shape, and a batch is of one size, see `ShapedObjective`; else their middle squares.

    Raises:
        InfusionError: no photos or captions, pictures of the class without captions, or see `AptObjective`.
    """
    given = SubjectPhotos.of(photos)
    if not captions or (class_pictures and not class_captions):
        raise InfusionError("no captions; give at least one, such as 'a photo of sks cat'")
    settings = replace(settings, restraint=settings.restraint.on(model.temperature, model.augmentation))
    live = settings.text_rate > 0
    lora = LoraSet(layers_of(model, settings.targets, live), settings.rank, settings.alpha, settings.seed)
    every, said = said_of(given.captions, given.names, captions, phrase, needed=False)

    def seen(size: Size | None, numbers: Sequence[int]) -> Shown:
        photos = given.some(numbers)
        latents, masks = encoded(model, photos, settings.restraint, settings.seed, size)
        own = said and [said[number] for number in numbers]
        return Shown(latents, captions_for(model.text, every, live, size), masks, own)

    groups = sizes_of(model, given, aspect)
    one, *others = [seen(size, numbers) for size, numbers in groups.items()]
    prior = None
    if class_pictures:
        of_class = model.encode(list(class_pictures))[:, None]
        prior = Shown(of_class, captions_for(model.text, class_captions, live))
    first = AptObjective(model.denoiser, lora, one, settings, prior)
    members = [first, *map(first.on, others)]
    return Trainer(on_shapes(members, list(map(len, groups.values()))), settings, state)
