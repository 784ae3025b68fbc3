"""safetensors as bytes, with metadata in a fixed order: equal contents give equal files. Headers are checked first."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

SUFFIX = ".safetensors"
UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, struct.error)  # what `read_tensors` raises
LONGEST_HEADER = 16 * 2**20  # bytes; a training state of a large LoRA has one below 2 MiB
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
          "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}  # fmt: skip
_MOST_DIMENSIONS, _MOST_DIGITS = 8, 18
_MOST_OBJECTS = 100_000  # JSON objects and lists; ten thousand tensors have 30,000, and more take seconds to make


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header tells of it: type, shape, and where its bytes begin and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says it holds. The tensors' bytes are as many as their shapes need and fill the file, none twice."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_bytes(path: Path, most: int) -> bytes | None:
    """A file, or None if it is larger than `most` bytes; never more than that is read.

    Raises:
        OSError: it cannot be read or is a pipe, a device or a folder.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a name with a null character
        raise OSError(str(error)) from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is not a file")
        data = file.read(most + 1)
    return data if len(data) <= most else None


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file; the library writes metadata in random order, here they are sorted."""
    return with_metadata(save(dict(tensors), dict(metadata)), metadata)


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A file that `save` or `tensor_bytes` made, with other metadata."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    ordered = {**header, "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Raises:
        SafetensorError, ValueError, KeyError, TypeError, struct.error: it is damaged or something else (`UNREADABLE`).
    """
    header = read_header(data)
    return load(data), dict(header.metadata)


def read_header(data: bytes, longest: int = LONGEST_HEADER) -> Header:
    """The header, checked against the bytes behind it; no tensor is made.

    Args:
        data: the whole file.
        longest: bytes of header that are read at most.

    Raises:
        ValueError: it is damaged or something else.
    """
    if len(data) < 8:
        raise ValueError("it has no header")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("its header is cut off")
    if length > longest:
        raise ValueError(f"its header is longer than {longest} bytes")
    entries = parse_json(data[8 : 8 + length].decode())
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not is_table_of_strings(metadata):
        raise ValueError("its metadata are not strings")
    tensors = {name: _info(entry, 8 + length) for name, entry in entries.items()}
    _check_filled(tensors.values(), 8 + length, len(data))
    return Header(tensors, metadata)


def parse_json(text: str) -> Any:
    """JSON from a stranger: no name twice in an object, no endless numbers, no NaN, any depth and any number of lists.

    Raises:
        ValueError: it is none.
    """
    if text.count("[") + text.count("{") > _MOST_OBJECTS:
        raise ValueError("its JSON holds more lists than any file needs")
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_integer, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def is_table_of_strings(found: object) -> bool:
    """Whether it is a flat JSON object whose values are strings."""
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or not digits.lstrip("-").isdigit():
        raise ValueError("its JSON holds a number that no file needs")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its JSON holds a name twice")
    return found


def _info(entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("its header describes something that is not a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError("its header names an unknown data type")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError("its header holds a shape or an offset that cannot be")
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise ValueError("its header gives a tensor another size than its shape has")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(found: Any) -> bool:
    return isinstance(found, list) and all(type(size) is int and size >= 0 for size in found)


def _check_filled(tensors: Iterable[TensorInfo], start: int, end: int) -> None:
    """Refuse overlaps and holes: what lies in a file is looked at once, and all of it."""
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != start:
            raise ValueError("its tensors overlap or leave a gap")
        start = info.end
    if start != end:
        raise ValueError("it is cut off, or longer than its tensors")
