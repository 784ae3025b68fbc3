"""Base models of the embedded host: TinyWorld, and any local Stable Diffusion 1.x, 2.x or XL, a folder or one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from ..errors import InfusionError
from ..noise import Prediction, seeded, sigmas_from_alphas
from .photos import square, to_images, to_tensor
from .single_file import load_single_file
from .text import ClipTokenizer, Encoder, TextPath, WordTokenizer
from .unet import UNetDenoiser

BUILT_IN = {"tinyworld": Path(__file__).parent / "tinyworld" / "weights"}  # models that ship with the project, by name
WISHES = "infusion.json"  # beside a model: what to sample it with, and where it belongs
Load = Callable[[Any, str], Any]  # a network by its class and diffusers' name of it


@dataclass
class EmbeddedModel:
    """A base model, ready to train on and to sample from.

    Attributes:
        name: of a model that ships with the project, of the folder, or of the file.
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
        rows = [torch.randn(self.latent_shape, generator=seeded(seed + i)) for i in range(count)]
        return torch.stack(rows).to(self.denoiser.device, self.denoiser.unet.dtype)


def load_model(name: str, device: str | None = None, config: Path | None = None) -> EmbeddedModel:
    """Load a base model.

    Args:
        name: ``tinyworld``, a local folder in diffusers' format, or a single-file checkpoint (safetensors).
        device: where to put it; by default a GPU if there is one and the model does not prefer a CPU.
        config: for a single file, see `load_single_file`.

    Raises:
        InfusionError: the model is missing, incomplete or damaged, or it is not a cross-attention UNet.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    path = BUILT_IN.get(name) or Path(name)
    if not path.is_file() and not (path / "unet" / "config.json").is_file():
        raise InfusionError(
            f"{path} is not a diffusers Stable Diffusion folder (it has no unet/config.json); give 'tinyworld', "
            "a folder with unet, vae, text_encoder, tokenizer and scheduler, or a .safetensors checkpoint"
        )
    if config and not path.is_file():
        raise InfusionError(f"--config is for single-file checkpoints and {name} is none; leave it out")
    target = _device(device, _wishes(path))
    options = {"torch_dtype": torch.float16 if target.type == "cuda" else torch.float32, "local_files_only": True}

    def pretrained(kind: Any, part: str) -> Any:
        return kind.from_pretrained(path, subfolder=part, **options)

    try:
        if path.is_file():
            folder, networks = load_single_file(path, config, options)
            return _build(path.stem, folder, lambda _, part: networks[part], target)
        return _build(name if name in BUILT_IN else path.name, path, pretrained, target)
    except InfusionError:
        raise
    except Exception as error:  # diffusers and transformers raise of every kind for a broken model
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfusionError(
            f"cannot load the model in {path} ({reason}); check that it is complete, and for one file that the config "
            "is of its kind"
        ) from error


def _build(name: str, folder: Path, load: Load, device: torch.device) -> EmbeddedModel:
    """Put a model together from the configs in a folder and its networks."""
    import diffusers

    def part(kind: Any, subfolder: str) -> Any:
        return load(kind, subfolder).to(device).requires_grad_(False).eval()

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
    wishes = {k: v for k, v in _wishes(folder).items() if k in ("guidance", "steps")}
    return EmbeddedModel(name, denoiser, vae, _text(folder, part, unet, resolution), scheduler, resolution, **wishes)


def _wishes(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself: ``guidance``, ``steps``, ``device``; nothing for most."""
    file = folder / WISHES
    return json.loads(file.read_text()) if file.is_file() else {}


def _device(asked: str | None, wishes: dict[str, Any]) -> torch.device:
    return torch.device(asked or wishes.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))


def _text(folder: Path, part: Load, unet: Any, resolution: int) -> TextPath:
    import transformers

    words = folder / "tokenizer" / "words.json"
    if words.is_file():
        return TextPath([Encoder(WordTokenizer.read(words), part(transformers.CLIPTextModel, "text_encoder"))])
    two = (folder / "text_encoder_2").is_dir()
    encoders = []
    for suffix in ("", "_2") if two else ("",):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True)
        projected = two and suffix == "_2"
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        encoders.append(Encoder(ClipTokenizer(tokenizer), part(kind, f"text_encoder{suffix}"), two, projected))
    if not two:
        return TextPath(encoders)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]])
    return TextPath(encoders, {"time_ids": time_ids.to(unet.device, unet.dtype)})
