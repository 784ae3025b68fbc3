"""Networks from safetensors files: known by name and shape before a number is read, and every tensor accounted for."""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import InfusionError, printable
from .model_json import Rule, check, read_json

HEADER_BYTES = 32 * 2**20  # of one file; XL's has 0.4 MB, training programs add metadata
MOST_TENSORS = 16_384  # in one file; XL with a second copy of its UNet holds 4,300
MOST_SHARDS = 64
NETWORK_TENSORS = 4096  # in one network; XL's UNet has 1,680
CALLS, CALLS_OF_A_TENSOR = 200, 16  # of torch while a network is made: at most 7 for each of its tensors were seen
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
FLOATS = re.compile(r"B?F\d+(_.*)?")  # safetensors' names of floating-point types
SCALES = (".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8")  # ends of names beside weights in steps
# Old names of attention in autoencoders, as diffusers translates them.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
# What text encoders' files may hold beside the network: a constant, and CLIP's way to pictures.
SPARE = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")


@dataclass(frozen=True)
class Weights:
    """The tensors in one or more files of a network.

    Attributes:
        files: where each tensor is, by its name.
        shapes: of each tensor.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors in memory of their own.

        Args:
            names: name in the file by the name wanted.
            dtype: of what is returned.
        """
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self.files[held] for held in names.values()):
            with _opened(file) as opened:
                for name, held in names.items():
                    if self.files[held] == file:
                        found[name] = opened.get_tensor(held).to(dtype, copy=True)
        return found


def weights_of(files: Iterable[Path]) -> Weights:
    """What files hold, from their headers alone.

    Raises:
        InfusionError: one is missing, damaged, no safetensors file, holds too many tensors, or two hold one name.
    """
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _opened(file) as opened:
            names = list(opened.keys())
            if len(names) + len(where) > MOST_TENSORS:
                raise InfusionError(f"{file} holds more than {MOST_TENSORS:,} tensors, as no model does; get it again")
            for name in names:
                if name.endswith(SCALES):
                    raise InfusionError(
                        f"{file} is quantised (it holds {name!r}), which is not supported; get a version in fp16, "
                        "bf16 or plain fp8"
                    )
                if name in where:
                    raise InfusionError(f"{file} and {where[name].name} both hold {name!r}; get the model again")
                part = opened.get_slice(name)
                if not FLOATS.fullmatch(part.get_dtype()) and not name.endswith(SPARE):
                    raise InfusionError(
                        f"{file}: {name!r} is of type {part.get_dtype()}, weights are floating-point numbers; "
                        "get a version of the model that is not quantised"
                    )
                where[name], shapes[name] = file, tuple(part.get_shape())
    return Weights(where, shapes)


def _opened(file: Path) -> Any:
    """An open safetensors file whose header has a bounded size."""
    if not file.is_file():
        raise InfusionError(f"{file} is missing; the model is not whole, get it again")
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
        if len(start) == 8 and struct.unpack("<Q", start)[0] > HEADER_BYTES:
            raise SafetensorError("its header is too large")
        return safe_open(file, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InfusionError(
            f"{file} is damaged or not a safetensors file ({printable(str(error))}); get it again"
        ) from error


def folder_files(folder: Path, stem: str) -> list[Path]:
    """The files that hold a network: one, its half-precision variant, or the shards that an index lists.

    Args:
        folder: of the network.
        stem: name of the file without its end, ``diffusion_pytorch_model`` or ``model``.

    Raises:
        InfusionError: there is none; says so if there are pickles, or other variants.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in _shards(index)]
    wanted = folder / f"{stem}.safetensors"
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if others:
        raise InfusionError(
            f"{wanted} is missing and {others[0]!r} beside it is a variant; copy the one you want to that name"
        )
    if pickles:
        raise InfusionError(
            f"{wanted} is missing and {pickles[0]!r} beside it is a pickle, which can run code when it is opened; get "
            "the model's safetensors version, or convert it on a machine you can spare"
        )
    raise InfusionError(f"{wanted} is missing; the model is not whole, get it again")


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(type(n) is str for n in places.values()) else set()
    if not 1 <= len(names) <= MOST_SHARDS or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise InfusionError(
            f"{index} does not list 1 to {MOST_SHARDS} .safetensors files of its own folder in weight_map; get it again"
        )
    return sorted(names)


class _Budget(TorchFunctionMode):
    """Ends the making of a network that has far more layers than its files hold tensors."""

    def __init__(self, file: Path, tensors: int) -> None:
        super().__init__()
        self.file, self.tensors, self.left = file, tensors, CALLS + CALLS_OF_A_TENSOR * tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise InfusionError(
                f"{self.file} asks for many more layers than the {self.tensors:,} tensors of its weights fill; "
                "get the model again, or the config that belongs to it"
            )
        return func(*args, **(kwargs or {}))


def empty_network(kind: Any, config: Mapping[str, Any], rules: Mapping[str, Rule], file: Path, tensors: int) -> Any:
    """A network of a config without memory for its weights.

    Args:
        kind: class of diffusers, which takes its config as arguments, or of transformers, which has a config class.
        config: what the file says.
        rules: of the config; what has none must be as diffusers' default, as it would be another network.
        file: of the config, for messages.
        tensors: that there are for it.

    Raises:
        InfusionError: the config breaks a rule or describes no network, or one with far more layers than tensors.
    """
    check(file, config, rules)
    if tensors > NETWORK_TENSORS:
        raise InfusionError(
            f"the weights for {file} are {tensors:,} tensors, more than any network has; get them again"
        )
    made = getattr(kind, "config_class", None)
    told = {key: value for key, value in config.items() if key in rules and not key.startswith("_")}
    if not made:
        _refuse_unknown(kind, config, rules, file)
    try:
        # no_grad outermost: what it restores holds even if the budget ends in the middle of one of torch's own.
        with torch.no_grad(), torch.device("meta"), _Budget(file, tensors):
            return kind(made(**told)) if made else kind(**told)
    except InfusionError:
        raise
    except Exception as error:  # the libraries raise of every kind for sizes that do not fit together
        raise InfusionError(
            f"{file} describes no {kind.__name__} ({printable(str(error) or type(error).__name__)}); get it again"
        ) from error


def _refuse_unknown(kind: Any, config: Mapping[str, Any], rules: Mapping[str, Rule], file: Path) -> None:
    for key, parameter in inspect.signature(kind.__init__).parameters.items():
        if key in config and key not in rules and config[key] != parameter.default:
            raise InfusionError(
                f"{file}: {key} is {printable(repr(config[key]))}, which is not supported; "
                "use a Stable Diffusion 1.x, 2.x or XL model"
            )


def account(network: Any, shapes: Mapping[str, tuple[int, ...]], what: str, config: Path) -> dict[str, str]:
    """Match the tensors there are with those a network has.

    Args:
        network: without memory.
        shapes: of the tensors there are, by name.
        what: where they are, for messages: begins with a path.
        config: the network's.

    Returns:
        Name among `shapes` by the network's own name.

    Raises:
        InfusionError: a tensor is missing, left over, or of another shape: how many, and the first.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found: dict[str, str] = {}
    left = []
    for held in shapes:
        name = _own_name(held, wanted)
        if name and name not in found:
            found[name] = held
        elif not (hasattr(network.config, "vocab_size") and held.endswith(SPARE)):
            left.append(held)
    missing = [name for name in wanted if name not in found]
    wrong = [name for name, held in found.items() if shapes[held] != wanted[name]]
    remedy = "get the model again, or the config that belongs to it"
    if missing:
        raise InfusionError(
            f"{what} lacks {len(missing):,} of the {len(wanted):,} tensors that {config} asks for (the first: "
            f"{missing[0]!r}); {remedy}"
        )
    if left:
        raise InfusionError(
            f"{what} holds {len(left):,} tensors that {config} does not ask for (the first: "
            f"{printable(left[0])!r}); {remedy}"
        )
    if wrong:
        raise InfusionError(
            f"{what}: {len(wrong):,} tensors are of another shape than {config} asks for (the first: {wrong[0]!r}, "
            f"{list(shapes[found[wrong[0]]])} and not {list(wanted[wrong[0]])}); {remedy}"
        )
    return found


def _own_name(held: str, wanted: Mapping[str, Any]) -> str | None:
    """A network's name of a tensor: versions of transformers differ in a prefix, old autoencoders in attention."""
    renamed = held
    for old, new in OLD_NAMES.items():
        renamed = renamed.replace(old, new)
    names = (held, renamed, held.removeprefix("text_model."), f"text_model.{held}")
    return next((name for name in names if name in wanted), None)


def fill(network: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Give a network without memory its weights, and the constants that no file holds."""
    network.load_state_dict(tensors, strict=True, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:
            if not name.endswith("position_ids"):
                raise InfusionError(
                    f"this version of the libraries gives networks an unknown constant, {name}; use another"
                )
            parent, _, own = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            network.get_submodule(parent).register_buffer(own, ids, persistent=False)
    return network
