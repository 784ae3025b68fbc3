"""One-file checkpoints in the original layout, read by diffusers' own single-file loading; the hub is never asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import InfusionError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Kind:
    """A family of checkpoints, told apart by how a file names its text encoder.

    Attributes:
        name: for messages.
        text: prefixes of the text encoders' tensors, by diffusers' name of the encoder.
        repository: whose configs fit every model of the family; None if none does.
    """

    name: str
    text: dict[str, str]
    repository: str | None


KINDS = (
    Kind(
        "Stable Diffusion 1.x",
        {"text_encoder": "cond_stage_model.transformer."},
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Kind("Stable Diffusion 2.x", {"text_encoder": "cond_stage_model.model."}, None),  # some predict noise, others v
    Kind(
        "Stable Diffusion XL",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        "stabilityai/stable-diffusion-xl-base-1.0",
    ),
)
NETWORKS = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


def load_single_file(file: Path, config: Path | None, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Load the networks of a checkpoint.

    Args:
        file: safetensors, in the original layout.
        config: a diffusers folder of the same kind of model, for its configs and tokenizer; by default the one
            that lies in the local hub cache.
        options: for diffusers' loader: dtype, local files only.

    Returns:
        The config folder, and the networks by diffusers' names: ``unet``, ``vae``, ``text_encoder``, ...

    Raises:
        InfusionError: not such a file, no config on this machine, or the two do not fit together.
    """
    import diffusers

    sizes = _sizes(file)
    kind = _kind(file, sizes)
    folder = config or _cached_config(file, kind)
    if not (folder / "model_index.json").is_file():
        raise InfusionError(
            f"{folder} is not a diffusers folder (it has no model_index.json); give one of {kind.name} (--config)"
        )
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    if "v_pred" in sizes and scheduler.config["prediction_type"] != "v_prediction":
        raise InfusionError(f"{file} predicts v, the config in {folder} does not; give a config that does (--config)")
    two = "text_encoder_2" in kind.text
    pipeline = diffusers.StableDiffusionXLPipeline if two else diffusers.StableDiffusionPipeline
    unused = ["tokenizer", "feature_extractor", "image_encoder", "tokenizer_2" if two else "safety_checker"]
    loaded = pipeline.from_single_file(
        str(file), config=str(folder), scheduler=scheduler, **dict.fromkeys(unused), **options
    )
    prefixes = NETWORKS | kind.text
    networks = {name: getattr(loaded, name) for name in prefixes}
    for name, network in networks.items():
        _check_filled(file, folder, name, network, sum(n for k, n in sizes.items() if k.startswith(prefixes[name])))
    return folder, networks


def _sizes(file: Path) -> dict[str, int]:
    """How many numbers each tensor of a file holds."""
    if file.suffix.lower() in PICKLES:
        raise InfusionError(f"{file} is a pickle, which can run code when it is opened; give a .safetensors version")
    try:
        with safe_open(file, "pt") as opened:
            return {key: math.prod(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InfusionError(f"{file} is damaged or not a safetensors file ({error}); get it again") from error


def _kind(file: Path, sizes: dict[str, int]) -> Kind:
    for kind in KINDS:
        wanted = (*NETWORKS.values(), *kind.text.values())
        if all(any(key.startswith(prefix) for key in sizes) for prefix in wanted):
            return kind
    raise InfusionError(
        f"{file} is not a whole Stable Diffusion 1.x, 2.x or XL checkpoint (UNet, autoencoder and text encoder in the "
        "original layout); give such a file or a diffusers folder"
    )


def _cached_config(file: Path, kind: Kind) -> Path:
    """The configs of a family's first model, if diffusers or another program left them in the local hub cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    remedy = f"give --config FOLDER, a diffusers folder of {kind.name} (its .json and .txt files are enough)"
    if kind.repository is None:
        raise InfusionError(f"{file} does not say whether it predicts noise or v; {remedy}")
    try:
        folder = Path(snapshot_download(kind.repository, local_files_only=True))
    except LocalEntryNotFoundError:
        folder = None
    if folder is None or not (folder / "unet" / "config.json").is_file():
        raise InfusionError(
            f"{file} holds weights only, and no configs and tokenizer for them are on this machine; {remedy}, or once "
            f"run: hf download {kind.repository} --include '*.json' '*.txt'"
        )
    return folder


def _check_filled(file: Path, folder: Path, name: str, network: Any, held: int) -> None:
    """Refuse a network of which the file left a part at its random start (the loader does not say so)."""
    wanted = sum(parameter.numel() for parameter in network.parameters())
    if held < wanted or (name == "unet" and held > wanted):
        raise InfusionError(
            f"the {name} in {file} holds {held:,} numbers, the config in {folder} asks for {wanted:,}; "
            "give the config of this model (--config)"
        )
