"""The concept file, on safetensors. docs/residual-format.md specifies it; the words MUST and MAY are there."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load
from torch import Tensor

from .atomic import write_atomic
from .errors import InfusionError
from .residual_metadata import FORMAT, HASH, VERSION, description_of, metadata_of
from .residual_rules import check_numbers, check_shapes, quoted
from .residuals import ConceptResidual
from .tensor_file import UNREADABLE, Header, TensorInfo, read_bytes, read_header, tensor_bytes, with_metadata

MAX_BYTES = 32 * 2**20  # `residuals.MOST_NUMBERS` in 32 bits and the longest header
LONGEST_HEADER = 2**20  # bytes; the largest thumbnail takes a third of it
Storage = Literal["fp16", "int8"]

_PREFIX, _SCALE = "residual.", "scale."
_DTYPES = ("F16", "BF16", "F32", "I8")
_HALF_MAX = torch.finfo(torch.float16).max


def save_concept(path: Path | str, concept: ConceptResidual, storage: Storage = "fp16") -> int:
    """Write a concept file atomically; returns its size in bytes.

    Args:
        path: where; ``.safetensors``.
        concept: what to store.
        storage: ``fp16``, or ``int8`` with one scale per place.

    Raises:
        InfusionError: the concept cannot be stored, see `concept_bytes`, or the disk is full.
    """
    data = concept_bytes(concept, storage)
    write_atomic(Path(path), data)
    return len(data)


def concept_bytes(concept: ConceptResidual, storage: Storage = "fp16") -> bytes:
    """The concept file's bytes; equal concepts give equal bytes.

    Raises:
        InfusionError: unknown storage, a residual is not finite or does not fit, or the reader would refuse the file.
    """
    if storage not in get_args(Storage):
        raise InfusionError(f"unknown storage {storage!r}; choose one of: {', '.join(get_args(Storage))}")
    full = {name: tensor.detach().cpu().float() for name, tensor in concept.tensors.items()}
    try:
        metadata = metadata_of(concept)
        check_shapes(concept, {name: tuple(tensor.shape) for name, tensor in full.items()})
    except ValueError as error:
        raise InfusionError(
            f"the concept {concept.word!r} cannot be a file ({error}); change that and save again"
        ) from error
    data = tensor_bytes(_stored(full, storage), metadata)
    return with_metadata(data, {**metadata, HASH: _content_hash(read_header(data), data)})


def load_concept(path: Path | str, name: str | None = None) -> ConceptResidual:
    """Read a concept file.

    Args:
        path: the file.
        name: what to call it in errors, instead of its path.

    Raises:
        InfusionError: the file is missing, truncated, hostile, of a newer version, not a concept, or holds NaN.
    """
    where = str(path) if name is None else name
    return concept_from_bytes(_file_bytes(Path(path), where), where)


def is_concept_file(path: Path | str) -> bool:
    """Whether a file calls itself a concept; `load_concept` says what is wrong with it, if anything is."""
    try:
        data = read_bytes(Path(path), MAX_BYTES)
        return data is not None and read_header(data).metadata.get("format") == FORMAT
    except (OSError, ValueError):
        return False


def _file_bytes(path: Path, where: str) -> bytes:
    """What is in a file that may be a concept; `where` names it in errors.

    Raises:
        InfusionError: it is missing, no file, or larger than any concept.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise InfusionError(f"cannot read {where}: {error.strerror or error}; check the path") from error
    if data is None:
        raise _too_large(where)
    return data


def concept_from_bytes(data: bytes, where: str = "the file") -> ConceptResidual:
    """Parse a concept file's bytes; `where` names it in errors.

    Whatever the bytes are, it takes less than a second and 300 MB.

    Raises:
        InfusionError: see `load_concept`.
    """
    if len(data) > MAX_BYTES:
        raise _too_large(where)
    try:
        header = read_header(data, LONGEST_HEADER)
    except UNREADABLE as error:
        raise InfusionError(f"{where} is damaged or not a safetensors file ({error}); get it again") from error
    if header.metadata.get("format") != FORMAT:
        raise InfusionError(f"{where} is a safetensors file but not an Infusion concept; choose a concept file")
    if header.metadata.get("format_version") != VERSION:
        version = quoted(header.metadata.get("format_version", "none"))
        raise InfusionError(f"{where} has format version {version}, this software reads {VERSION}; update Infusion")
    try:
        return _parse(header, data)
    except UNREADABLE as error:
        raise InfusionError(f"{where} is not a valid concept file ({error}); get it again") from error


def _too_large(where: str) -> InfusionError:
    return InfusionError(f"{where} is larger than any concept file; choose a file that Infusion wrote")


def _stored(full: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The residuals as the file holds them.

    Raises:
        InfusionError: one is not finite or does not fit 16 bits.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in full.items():
        try:
            check_numbers(name, tensor)
        except ValueError as error:
            raise InfusionError(
                f"the residual at {name} is not finite; train again with a lower learning rate"
            ) from error
        if storage == "int8":
            scale = (tensor.abs().amax().clamp(max=_HALF_MAX) / 127).clamp(min=1e-12)
            tensors[_PREFIX + name] = (tensor / scale).round().to(torch.int8)
            tensors[_SCALE + name] = scale.reshape(1)
        else:
            tensors[_PREFIX + name] = tensor.half().contiguous()
    return tensors


def _parse(header: Header, data: bytes) -> ConceptResidual:
    """The concept; nothing is made of its tensors before their names, types, shapes and number are known to be good."""
    concept = description_of(header.metadata)
    shapes = _shapes(header)
    check_shapes(concept, shapes)
    if HASH in header.metadata and header.metadata[HASH] != _content_hash(header, data):
        raise ValueError(f"its contents are not those that {HASH} was made of")
    tensors, residuals = load(data), {}
    for name in shapes:
        residuals[name] = tensors[_PREFIX + name].float()
        if _SCALE + name in tensors:
            residuals[name] *= tensors[_SCALE + name]
        check_numbers(name, residuals[name])
    return replace(concept, tensors=residuals)


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """The residuals' shapes by place; every integer residual has one scale, and no other has any."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, info in header.tensors.items():
        if key.startswith(_SCALE):
            _check_scale(info, header.tensors.get(_PREFIX + key.removeprefix(_SCALE)), key)
            continue
        if not key.startswith(_PREFIX):
            raise ValueError(f"unexpected tensor {quoted(key)}")
        name = key.removeprefix(_PREFIX)
        if info.dtype not in _DTYPES:
            raise ValueError(f"{quoted(key)} is of type {info.dtype}")
        if info.dtype == "I8" and _SCALE + name not in header.tensors:
            raise ValueError(f"{quoted(key)} is of type I8 and has no scale")
        shapes[name] = info.shape
    return shapes


def _check_scale(scale: TensorInfo, residual: TensorInfo | None, key: str) -> None:
    """A scale is one number beside an integer residual; any other shape would make a small file large."""
    if (scale.dtype, scale.shape) != ("F32", (1,)) or residual is None or residual.dtype != "I8":
        raise ValueError(f"{quoted(key)} is not one F32 number beside an I8 residual")


def _content_hash(header: Header, data: bytes) -> str:
    """SHA-256 of everything that a file says and holds, whatever its order."""
    digest = hashlib.sha256()
    for item in _items(header, data):
        digest.update(struct.pack("<Q", len(item)))
        digest.update(item)
    return digest.hexdigest()


def _items(header: Header, data: bytes) -> Iterator[bytes | memoryview]:
    for key in sorted(header.metadata.keys() - {HASH}):
        yield key.encode()
        yield header.metadata[key].encode()
    for name in sorted(header.tensors):
        info = header.tensors[name]
        yield name.encode()
        yield info.dtype.encode()
        yield ",".join(map(str, info.shape)).encode()
        yield memoryview(data)[info.start : info.end]
