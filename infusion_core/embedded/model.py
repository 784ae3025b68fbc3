"""Base models of the embedded host: TinyWorld, and any local diffusers-format Stable Diffusion 1.x, 2.x or XL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from ..errors import InfusionError
from ..noise import Prediction, sigmas_from_alphas
from .photos import square, to_images, to_tensor
from .text import ClipTokenizer, Encoder, TextPath, WordTokenizer
from .unet import UNetDenoiser

TINYWORLD = Path(__file__).parent / "tinyworld" / "weights"


@dataclass
class EmbeddedModel:
    """A base model, ready to train on and to sample from.

    Attributes:
        name: ``tinyworld`` or the folder's name.
        denoiser: the frozen UNet.
        vae: autoencoder.
        text: tokenizers and text encoders.
        scheduler: DDIM.
        resolution: of its pictures, px.
        guidance, steps: what to sample with unless told otherwise.
    """

    name: str
    denoiser: UNetDenoiser
    vae: Any
    text: TextPath
    scheduler: Any
    resolution: int
    guidance: float = 8.0
    steps: int = 50

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        config = self.denoiser.unet.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    @torch.no_grad()
    def encode(self, photos: list[Image.Image]) -> Tensor:
        """Latents (N, C, h, w) of photos, each cropped to the centre square and scaled to the model's resolution."""
        pixels = to_tensor([square(p, self.resolution) for p in photos]).to(self.vae.device, self.vae.dtype)
        out = []
        for row in pixels:
            encoded = self.vae.encode(row[None])
            latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
            out.append(latent * self.vae.config["scaling_factor"])
        return torch.cat(out)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (N, C, h, w)."""
        rows = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        return [picture for row in rows for picture in to_images(self.vae.decode(row[None]).sample.float())]

    def noise(self, count: int, seed: int) -> Tensor:
        """Unit noise (count, C, h, w); picture i depends on `seed` + i alone."""
        rows = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]
        return torch.stack(rows).to(self.denoiser.device, self.denoiser.unet.dtype)


def load_model(name: str, device: str | None = None) -> EmbeddedModel:
    """Load a base model.

    Args:
        name: ``tinyworld``, or a local folder in diffusers' format.
        device: where to put it; by default a GPU if there is one.

    Raises:
        InfusionError: the folder is missing or incomplete, or the model is not a cross-attention UNet.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tiny = name == "tinyworld"
    folder = TINYWORLD if tiny else Path(name)
    if folder.is_file():
        raise InfusionError(f"{folder} is one file; convert it to a diffusers folder and give that (--model)")
    if not (folder / "unet" / "config.json").is_file():
        raise InfusionError(
            f"{folder} is not a diffusers Stable Diffusion folder (it has no unet/config.json); "
            "give 'tinyworld' or a folder with unet, vae, text_encoder, tokenizer and scheduler"
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() and not tiny else "cpu"))
    dtype = torch.float16 if place.type == "cuda" else torch.float32
    try:
        return _load(folder, tiny, place, dtype)
    except InfusionError:
        raise
    except Exception as error:  # diffusers and transformers raise of every kind for a broken folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfusionError(
            f"cannot load the model in {folder} ({reason}); check that the folder is complete"
        ) from error


def _load(folder: Path, tiny: bool, device: torch.device, dtype: torch.dtype) -> EmbeddedModel:
    import diffusers

    def part(kind: Any, subfolder: str) -> Any:
        options = {"local_files_only": True, "torch_dtype": dtype}
        model = kind.from_pretrained(folder, subfolder=subfolder, **options)
        return model.to(device).requires_grad_(False).eval()

    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    prediction = scheduler.config["prediction_type"]
    if prediction not in ("epsilon", "v_prediction"):
        raise InfusionError(f"models that predict {prediction!r} are not supported; use an epsilon or v-prediction one")
    unet = part(diffusers.UNet2DConditionModel, "unet")
    if unet.config["in_channels"] != 4:
        raise InfusionError(
            f"this UNet takes {unet.config['in_channels']} channels; inpainting models are not supported"
        )
    denoiser = UNetDenoiser(unet, sigmas_from_alphas(scheduler.alphas_cumprod), cast(Prediction, prediction))
    kind = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
    vae = part(getattr(diffusers, kind), "vae")
    channels = vae.config.get("block_out_channels") or vae.config["decoder_block_out_channels"]
    resolution = int(unet.config["sample_size"]) * 2 ** (len(channels) - 1)
    text = _text(folder, tiny, part, unet, resolution)
    model = EmbeddedModel("tinyworld" if tiny else folder.name, denoiser, vae, text, scheduler, resolution)
    if tiny:
        model.guidance, model.steps = 3.0, 25
    return model


def _text(folder: Path, tiny: bool, part: Any, unet: Any, resolution: int) -> TextPath:
    import transformers

    if tiny:
        return TextPath([Encoder(WordTokenizer(), part(transformers.CLIPTextModel, "text_encoder"))])
    two = (folder / "text_encoder_2").is_dir()
    encoders = []
    for suffix in ("", "_2") if two else ("",):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True)
        projected = two and suffix == "_2"
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        encoders.append(Encoder(ClipTokenizer(tokenizer), part(kind, f"text_encoder{suffix}"), penultimate=two))
    if not two:
        return TextPath(encoders)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]])
    return TextPath(encoders, {"time_ids": time_ids.to(unet.device, unet.dtype)})
