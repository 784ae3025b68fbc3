"""The concept file, on safetensors. docs/residual-format.md specifies it; the words MUST and MAY are there."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .atomic import write_atomic
from .captions import LONGEST_WORD
from .errors import InfusionError
from .residuals import LAYOUTS, ConceptResidual, Layout
from .tensor_file import UNREADABLE, read_tensors, tensor_bytes

FORMAT = "infusion-concept"
VERSION = "1"
MAX_BYTES = 256 * 2**20
Storage = Literal["fp16", "int8"]

_PREFIX, _SCALE = "residual.", "scale."
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int8)
_MODELSPEC_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}


def save_concept(path: Path | str, concept: ConceptResidual, storage: Storage = "fp16") -> int:
    """Write a concept file atomically; returns its size in bytes.

    Args:
        path: where; ``.safetensors``.
        concept: what to store.
        storage: ``fp16``, or ``int8`` with one scale per place.

    Raises:
        InfusionError: a residual is not finite or does not fit fp16, or the disk is full.
    """
    data = concept_bytes(concept, storage)
    write_atomic(Path(path), data)
    return len(data)


def concept_bytes(concept: ConceptResidual, storage: Storage = "fp16") -> bytes:
    """The concept file's bytes; equal concepts give equal bytes.

    Raises:
        InfusionError: unknown storage, or a residual is not finite or does not fit.
    """
    if storage not in get_args(Storage):
        raise InfusionError(f"unknown storage {storage!r}; choose one of: {', '.join(get_args(Storage))}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in concept.tensors.items():
        full = tensor.detach().cpu().float()
        if not full.half().isfinite().all():
            raise InfusionError(f"the residual at {name} is not finite; train again with a lower learning rate")
        if storage == "int8":
            scale = (full.abs().amax() / 127).clamp(min=1e-12)
            tensors[_PREFIX + name] = (full / scale).round().to(torch.int8)
            tensors[_SCALE + name] = scale.reshape(1)
        else:
            tensors[_PREFIX + name] = full.half().contiguous()
    return tensor_bytes(tensors, _metadata(concept))


def load_concept(path: Path | str) -> ConceptResidual:
    """Read a concept file.

    Raises:
        InfusionError: the file is missing, truncated, hostile, of a newer version, not a concept, or holds NaN.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InfusionError(f"{path} is larger than any concept file; choose a file that Infusion wrote")
        data = path.read_bytes()
    except OSError as error:
        raise InfusionError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return concept_from_bytes(data, str(path))


def concept_from_bytes(data: bytes, where: str = "the file") -> ConceptResidual:
    """Parse a concept file's bytes; `where` names it in errors.

    Raises:
        InfusionError: see `load_concept`.
    """
    try:
        tensors, metadata = read_tensors(data)
    except UNREADABLE as error:
        raise InfusionError(f"{where} is damaged or not a safetensors file ({error}); get it again") from error
    if metadata.get("format") != FORMAT:
        raise InfusionError(f"{where} is a safetensors file but not an Infusion concept; choose a concept file")
    if metadata.get("format_version") != VERSION:
        version = metadata.get("format_version")
        raise InfusionError(f"{where} has format version {version}, this software reads {VERSION}; update Infusion")
    try:
        return _parse(tensors, metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfusionError(f"{where} is not a valid concept file ({error}); get it again") from error


def _metadata(concept: ConceptResidual) -> dict[str, str]:
    base = _MODELSPEC_ARCHITECTURES.get(concept.architecture, concept.architecture)
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "word": concept.word,
        "layout": concept.layout,
        "base": concept.architecture,
        "context_width": str(concept.context_width),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base}/infusion",
        "modelspec.implementation": "infusion",
        "modelspec.title": concept.training.get("title", concept.word),
        "modelspec.trigger_phrase": concept.word,
        "modelspec.prediction_type": "v" if concept.prediction == "v_prediction" else "epsilon",
    }
    for key in ("resolution", "date"):
        if key in concept.training:
            metadata[f"modelspec.{key}"] = concept.training[key]
    rest = {k: v for k, v in concept.training.items() if k not in ("title", "resolution", "date")}
    if rest:
        metadata["training"] = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    if concept.thumbnail is not None:
        metadata["modelspec.thumbnail"] = thumbnail_url(concept.thumbnail)
    return metadata


def _parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ConceptResidual:
    word, layout = metadata["word"].strip(), metadata["layout"]
    if not word or len(word) > LONGEST_WORD:
        raise ValueError(f"the word is empty or longer than {LONGEST_WORD} letters")
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}")
    prediction = {"epsilon": "epsilon", "v": "v_prediction"}[metadata["modelspec.prediction_type"]]
    residuals: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.startswith(_SCALE):
            continue
        if not key.startswith(_PREFIX):
            raise ValueError(f"unexpected tensor {key!r}")
        if tensor.dim() != 3 or not tensor.numel() or tensor.dtype not in _DTYPES:
            raise ValueError(f"{key} is not a (bins, tokens, width) residual")
        full = tensor.float()
        if tensor.dtype == torch.int8:
            full = full * tensors[_SCALE + key.removeprefix(_PREFIX)].float()
        if not full.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinite numbers")
        residuals[key.removeprefix(_PREFIX)] = full
    if len({t.shape[:2] for t in residuals.values()}) != 1:
        raise ValueError("no residuals, or bins and tokens differ between them")
    training = json.loads(metadata.get("training", "{}"))
    if not all(isinstance(v, str) for v in training.values()):
        raise ValueError("training settings must be strings")
    for key in ("title", "resolution", "date"):
        if f"modelspec.{key}" in metadata and (key != "title" or metadata["modelspec.title"] != word):
            training[key] = metadata[f"modelspec.{key}"]
    known: Layout = next(name for name in get_args(Layout) if name == layout)
    concept = ConceptResidual(
        word, known, residuals, metadata["base"], int(metadata["context_width"]), prediction, training
    )
    return replace(concept, thumbnail=_thumbnail(metadata.get("modelspec.thumbnail")))


def thumbnail_url(picture: bytes) -> str:
    """PNG or JPEG bytes as a data URL."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _thumbnail(url: str | None) -> bytes | None:
    if url is None:
        return None
    head, _, encoded = url.partition(";base64,")
    if head not in ("data:image/png", "data:image/jpeg"):
        raise ValueError("the thumbnail is not a PNG or JPEG data URL")
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError("the thumbnail is damaged") from error
