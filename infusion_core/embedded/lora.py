"""Training a LoRA, restrained or plain, on a diffusers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..denoiser import Conditioning, EncodedPrompt
from ..errors import InfusionError
from ..lora import LoraSet
from ..training.apt import AptObjective, AptSettings
from ..training.augmentation import shown_in_latents, variants_of
from ..training.engine import Trainer
from ..training.lora import TEXT, Targets
from ..training.shown import Captions, EncodedCaptions, Shown
from ..training.state import TrainState
from .model import EmbeddedModel
from .photos import square, to_tensor
from .text import TextPath

UNET = "lora_unet_"  # how the names of the UNet's layers begin; what follows is diffusers' path
VARIANTS = 12  # of each photo, made and encoded before training
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_ENDS: dict[Targets, tuple[str, ...]] = {"cross-attention": tuple(f".attn2.{end}" for end in _PROJECTIONS)}
_ENDS["attention"] = (*_ENDS["cross-attention"], *(f".attn1.{end}" for end in _PROJECTIONS))
_ENDS["transformer"] = (*_ENDS["attention"], ".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out")
_TEXT_ENDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def layers_of(model: EmbeddedModel, targets: Targets, text: bool) -> dict[str, nn.Module]:
    """The layers of a model that get matrices, by the names that kohya's trainer gives them.

    Args:
        model: a diffusers model.
        targets: of the UNet.
        text: those of the text encoders too.
    """
    found = {
        f"{UNET}{path.replace('.', '_')}": module
        for path, module in model.denoiser.unet.named_modules()
        if path.endswith(_ENDS[targets])
    }
    encoders = model.text.encoders if text else ()
    for number, encoder in enumerate(encoders, 1):
        prefix = f"{TEXT}{number if len(encoders) > 1 else ''}_text_model_"
        for path, module in encoder.model.named_modules():
            if path.endswith(_TEXT_ENDS):
                found[prefix + path.removeprefix("text_model.").replace(".", "_")] = module
    return found


@dataclass(frozen=True)
class LiveCaptions:
    """Captions that are read anew at every pass, since their text encoder is trained; see `Captions`."""

    text: TextPath
    captions: Sequence[str]
    chunks: int

    def __len__(self) -> int:
        return len(self.captions)

    def __call__(self, rows: Sequence[int]) -> Conditioning:
        wanted = sorted({*rows})
        read = [self.text.encode(self.captions[row], chunks=self.chunks, live=True).conditioning for row in wanted]
        places = [wanted.index(row) for row in rows]
        extras = {name: torch.cat([one.extras[name] for one in read])[places] for name in read[0].extras}
        return Conditioning(torch.cat([one.context for one in read])[places], extras)


def captions_for(text: TextPath, captions: Sequence[str], live: bool) -> Captions:
    """Captions that are all of one context length.

    Args:
        text: the model's.
        captions: what is said.
        live: the text encoder is trained.
    """
    chunks = max(text.chunks_of(encoded) for encoded in _encoded(text, captions, 1))
    if live:
        return LiveCaptions(text, tuple(captions), chunks)
    return EncodedCaptions(list(_encoded(text, captions, chunks)))


def _encoded(text: TextPath, captions: Sequence[str], chunks: int) -> Iterator[EncodedPrompt]:
    return (text.encode(caption, chunks=chunks) for caption in captions)


def apt_trainer(
    model: EmbeddedModel,
    photos: Sequence[Image.Image],
    captions: Sequence[str],
    settings: AptSettings,
    class_pictures: Sequence[Image.Image] = (),
    class_captions: Sequence[str] = (),
    state: TrainState | None = None,
) -> Trainer[dict[str, Tensor]]:
    """The engine on an `AptObjective`, whose `lora` must be installed while it runs.

    Args:
        model: the base model, which is not changed.
        photos: of the subject.
        captions: any of them is said of any photo.
        settings: how to train.
        class_pictures: of other members of the class (DreamBooth's prior preservation).
        class_captions: said of them.
        state: of an interrupted run with the same inputs.

    Raises:
        InfusionError: no photos or captions, pictures of the class without captions, or see `AptObjective`.
    """
    if not photos:
        raise InfusionError("no photos to learn from; give at least one")
    if not captions or (class_pictures and not class_captions):
        raise InfusionError("no captions; give at least one, such as 'a photo of sks cat'")
    live = settings.text_rate > 0
    lora = LoraSet(layers_of(model, settings.targets, live), settings.rank, settings.alpha, settings.seed)
    latents, masks = _photos(model, photos, settings)
    shown = Shown(latents, captions_for(model.text, captions, live), masks)
    prior = None
    if class_pictures:
        encoded = model.encode(list(class_pictures))
        prior = Shown(encoded[:, None], captions_for(model.text, class_captions, live))
    return Trainer(AptObjective(model.denoiser, lora, shown, settings, prior), settings, state)


def _photos(model: EmbeddedModel, photos: Sequence[Image.Image], settings: AptSettings) -> tuple[Tensor, Tensor | None]:
    """Latents of photos and their variants, (N, 1 + variants, C, h, w), and how their loss is weighted."""
    pixels = to_tensor([square(photo, model.resolution) for photo in photos])
    if not settings.augment:
        return model.encode_pixels(pixels)[:, None], None
    made = variants_of(pixels / 2 + 0.5, VARIANTS, settings.seed)
    latents = model.encode_pixels(made.pictures.flatten(0, 1) * 2 - 1)
    masks = shown_in_latents(made.shown, *latents.shape[2:]).to(latents)
    return latents.reshape(*made.pictures.shape[:2], *latents.shape[1:]), masks
