"""Base models of the embedded host: TinyWorld, and any local Stable Diffusion 1.x, 2.x or XL, a folder or one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from ..denoiser import Conditioning
from ..errors import InfusionError, printable
from ..noise import Prediction, seeded, sigmas_from_alphas
from ..training.augmentation import PUBLISHED, Augmentation
from ..training.overfitting import TEMPERATURE
from ..training.shapes import Size
from .clip_files import PROBES, clip_tokenizer
from .model_json import AUTOENCODERS, SCHEDULER, TEXT, UNET, Rule, check, one_of, read_json
from .model_json import WISHES as WISHES_RULES
from .photos import square, to_images, to_tensor
from .single_file import open_single_file
from .text import ClipTokenizer, Encoder, TextPath, WordTokenizer
from .unet import UNetDenoiser
from .weights import account, empty_network, fill, folder_files, weights_of

BUILT_IN = {"tinyworld": Path(__file__).parent / "tinyworld" / "weights"}  # models that ship with the project, by name
WISHES = "infusion.json"  # beside a model: what to sample it with, and where it belongs
TIME_IDS = 6  # numbers that XL is told of a picture's size
_SIZES = "time_ids"  # diffusers' name of them
Load = Callable[[Any, str, Mapping[str, Rule]], Any]  # a network by its class, diffusers' name and its config's rules


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
        temperature: of the indicator of overfitting, unless told otherwise, see `Restraint`.
        augmentation: what it can see of photos that are shown otherwise, see `Augmentation`.
    """

    name: str
    denoiser: UNetDenoiser
    vae: Any
    text: TextPath
    scheduler: Any
    resolution: int
    guidance: float = 8.0
    steps: int = 50
    temperature: float = TEMPERATURE
    augmentation: Augmentation = PUBLISHED

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        config = self.denoiser.unet.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    @property
    def factor(self) -> int:
        """By which the network makes pictures smaller, to latents and then within."""
        halvings = len(self.denoiser.unet.config["block_out_channels"]) - 1
        return self.resolution // self.latent_shape[1] << halvings

    def encode(self, photos: list[Image.Image]) -> Tensor:
        """Latents (N, C, h, w) of photos, each cropped to the centre square and scaled to the model's resolution."""
        return self.encode_pixels(to_tensor([square(p, self.resolution) for p in photos]))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents (N, C, h, w) of pictures (N, 3, H, W) in [-1, 1]."""
        out = []
        for row in pixels.to(self.vae.device, self.vae.dtype):
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
    dtype = torch.float16 if target.type == "cuda" else torch.float32
    try:
        if path.is_file():
            single = open_single_file(path, config, dtype)
            return _build(path.stem, single.folder, single.load, target)
        return _build(name if name in BUILT_IN else path.name, path, partial(_load_part, path, dtype), target)
    except InfusionError:
        raise
    except Exception as error:  # diffusers and transformers raise of every kind for a broken model
        reason = printable(str(error) or type(error).__name__, 300)
        raise InfusionError(
            f"cannot load the model in {path} ({reason}); check that it is a whole Stable Diffusion 1.x, 2.x or XL "
            "model and fits into memory"
        ) from error


def _load_part(folder: Path, dtype: torch.dtype, kind: Any, part: str, rules: Mapping[str, Rule]) -> Any:
    """A network of a model's folder, every tensor accounted for before one is read."""
    config = folder / part / "config.json"
    told = read_json(config)
    stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
    files = folder_files(folder / part, stem)
    held = weights_of(files)
    network = empty_network(kind, told, rules, config, len(held.shapes))
    where = str(files[0]) + (f" and {len(files) - 1} other shards" if len(files) > 1 else "")
    return fill(network, held.read(account(network, held.shapes, where, config), dtype))


def _build(name: str, folder: Path, load: Load, device: torch.device) -> EmbeddedModel:
    """Put a model together from the configs in a folder and its networks."""
    import diffusers

    def part(kind: Any, subfolder: str, rules: Mapping[str, Rule]) -> Any:
        return load(kind, subfolder, rules).to(device).requires_grad_(False).eval()

    scheduler, sigmas, prediction = _schedule(folder / "scheduler" / "scheduler_config.json")
    unet_config = folder / "unet" / "config.json"
    told = read_json(unet_config)
    check(unet_config, told, UNET, needed=("sample_size", "cross_attention_dim", "block_out_channels"))
    if told.get("in_channels", 4) != 4:
        raise InfusionError(f"{unet_config}: in_channels is {told['in_channels']}; inpainting models are not supported")
    if told.get("out_channels", 4) != 4:
        raise InfusionError(f"{unet_config}: out_channels is {told['out_channels']}; use a model that predicts 4")
    vae_config = folder / "vae" / "config.json"
    vae_kind = str(read_json(vae_config).get("_class_name"))
    check(vae_config, {"_class_name": vae_kind}, {"_class_name": one_of(*AUTOENCODERS)})
    said = _wishes(folder)
    wishes = {k: v for k, v in said.items() if k in ("guidance", "steps", "temperature")}
    wishes["augmentation"] = Augmentation(**{k: v for k, v in said.items() if k in ("zoom", "turn", "canvas")})
    text = _encoders(folder, part, told)
    _check_meaning(folder, text)
    denoiser = UNetDenoiser(part(diffusers.UNet2DConditionModel, "unet", UNET), sigmas, prediction)
    vae = part(getattr(diffusers, vae_kind), "vae", AUTOENCODERS[vae_kind])
    channels = vae.config.get("block_out_channels") or vae.config["decoder_block_out_channels"]
    resolution = int(told["sample_size"]) * 2 ** (len(channels) - 1)
    path = _text_path(text, resolution, denoiser.unet)
    return EmbeddedModel(name, denoiser, vae, path, scheduler, resolution, **wishes)


def _schedule(file: Path) -> tuple[Any, Tensor, Prediction]:
    """A model's scheduler as DDIM, its noise levels (T,) and what its network says."""
    import diffusers

    told = read_json(file)
    prediction = told.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise InfusionError(
            f"models that predict {printable(repr(prediction))} are not supported ({file}: prediction_type); "
            "use an epsilon or v-prediction one"
        )
    check(file, told, SCHEDULER)
    scheduler = diffusers.DDIMScheduler.from_config(told)
    sigmas = sigmas_from_alphas(scheduler.alphas_cumprod)
    if (
        len(sigmas) != scheduler.config["num_train_timesteps"]
        or not sigmas.isfinite().all()
        or not (sigmas.diff() > 0).all()
    ):
        raise InfusionError(
            f"{file} describes noise levels that are not {scheduler.config['num_train_timesteps']:,} finite, rising "
            "numbers; get this file of the model again, or set rescale_betas_zero_snr to false"
        )
    return scheduler, sigmas, cast(Prediction, prediction)


def _wishes(folder: Path) -> dict[str, Any]:
    """What a model's folder says of itself, see `WISHES_RULES`; nothing for most."""
    file = folder / WISHES
    if not file.is_file():
        return {}
    told = read_json(file)
    check(file, told, WISHES_RULES)
    return told


def _device(asked: str | None, wishes: dict[str, Any]) -> torch.device:
    if asked:
        return torch.device(asked)
    return torch.device("cuda" if torch.cuda.is_available() and wishes.get("device") != "cpu" else "cpu")


def _encoders(folder: Path, part: Load, unet: Mapping[str, Any]) -> list[Encoder]:
    """The text encoders with their tokenizers, checked against each other and against the UNet's config."""
    import transformers

    words = folder / "tokenizer" / "words.json"
    if words.is_file():
        model = part(transformers.CLIPTextModel, "text_encoder", TEXT)
        _check_width(folder, [model.config], unet)
        tokenizer = WordTokenizer.read(words, model.config.vocab_size, model.config.max_position_embeddings)
        return [Encoder(tokenizer, model)]
    two = (folder / "text_encoder_2").is_dir()
    encoders, tokenizers = [], []
    for suffix in ("", "_2") if two else ("",):
        projected = two and suffix == "_2"
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        model = part(kind, f"text_encoder{suffix}", TEXT)
        sizes = model.config.vocab_size, model.config.max_position_embeddings
        tokenizers.append(ClipTokenizer(*clip_tokenizer(folder / f"tokenizer{suffix}", *sizes)))
        encoders.append(Encoder(tokenizers[-1], model, two, projected))
    _check_width(folder, [encoder.model.config for encoder in encoders], unet)
    if two and not tokenizers[0].splits_like(tokenizers[1]):
        raise InfusionError(f"{folder / 'tokenizer_2'} has other words than {folder / 'tokenizer'}; get both again")
    return encoders


def _check_meaning(folder: Path, encoders: Sequence[Encoder]) -> None:
    """Refuse a text encoder that says the same of two words, or no numbers: its weights are not what they were."""
    for number, encoder in enumerate(encoders):
        words = [*getattr(encoder.tokenizer, "ids", PROBES)][-2:]
        states, _ = encoder([encoder.tokenizer.split(word)[0] for word in words])
        one, other = states.chunk(2, dim=1)
        if torch.equal(one, other) or not (one.isfinite().all() and other.isfinite().all()):
            raise InfusionError(
                f"the text encoder{'' if not number else f' {number + 1}'} of {folder} cannot tell {words[0]!r} from "
                f"{words[1]!r}; its weights are damaged: get the model again"
            )


def _check_width(folder: Path, texts: Sequence[Any], unet: Mapping[str, Any]) -> None:
    """Refuse text encoders whose states or pooled text the UNet does not take."""
    file = folder / "unet" / "config.json"
    width = sum(text.hidden_size for text in texts)
    if unet["cross_attention_dim"] != width:
        raise InfusionError(
            f"{file}: cross_attention_dim is {unet['cross_attention_dim']}, the text encoders beside it give {width}; "
            "they are of different models: get the model again"
        )
    pooled = texts[-1].projection_dim if len(texts) > 1 else None
    taken = None
    if unet.get("addition_embed_type") == "text_time":
        times, taken = unet.get("addition_time_embed_dim"), unet.get("projection_class_embeddings_input_dim")
        if times is None or taken is None:
            raise InfusionError(
                f"{file} does not say how wide its pooled text and sizes are; get this file of the model again"
            )
        taken -= TIME_IDS * times
    if taken != pooled:
        raise InfusionError(
            f"{file} asks for pooled text of width {taken}, the text encoders beside it give {pooled}; "
            "they are of different models: get the model again"
        )


def sized(read: Conditioning, size: Size | None) -> Conditioning:
    """What a network reads beside latents of a size, None for its square: one that is told sizes (XL) is told this."""
    if size is None or _SIZES not in read.extras:
        return read
    (width, height), told = size, read.extras[_SIZES]
    return Conditioning(read.context, {**read.extras, _SIZES: told.new_tensor([_time_ids(width, height)])})


def _time_ids(width: int, height: int) -> list[int]:
    """Of a picture that is whole: its size, what was cut off at the top and left, and the size that is wanted."""
    return [height, width, 0, 0, height, width]


def _text_path(encoders: Sequence[Encoder], resolution: int, unet: Any) -> TextPath:
    if len(encoders) == 1:
        return TextPath(encoders)
    time_ids = torch.tensor([_time_ids(resolution, resolution)])
    return TextPath(encoders, {_SIZES: time_ids.to(unet.device, unet.dtype)})
