"""Concept files put together by hand, byte by byte as docs/residual-format.md says: valid ones, and any other."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

SIZES = {"F16": 2, "BF16": 2, "F32": 4, "I8": 1, "F64": 8, "U8": 1, "I64": 8, "BOOL": 1}
Parts = Mapping[str, tuple[str, list[int], bytes]]  # dtype, shape and bytes by name

PLAIN = {
    "format": "infusion-concept", "format_version": "1", "word": "cat", "layout": "block", "base": "unet4",
    "context_width": "4", "modelspec.prediction_type": "epsilon",
}  # fmt: skip


def assemble(metadata: Any, parts: Parts) -> bytes:
    """A file whose offsets are right, whatever else is not."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, raw) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    return with_header(json.dumps(header).encode(), b"".join(raw for _, _, raw in parts.values()))


def with_header(text: bytes, data: bytes) -> bytes:
    """Header and data behind the header's length."""
    return struct.pack("<Q", len(text)) + text + data


def disassemble(file: bytes) -> tuple[dict[str, str], dict[str, tuple[str, list[int], bytes]]]:
    """Metadata and parts of a valid file."""
    (length,) = struct.unpack_from("<Q", file)
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    metadata = header.pop("__metadata__")
    return metadata, {k: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for k, e in header.items()}


def content_sha256(metadata: Mapping[str, str], parts: Parts) -> str:
    """The hash as the format page defines it."""
    items = [text.encode() for key in sorted(metadata) if key != "content_sha256" for text in (key, metadata[key])]
    for name in sorted(parts):
        dtype, shape, raw = parts[name]
        items += [name.encode(), dtype.encode(), ",".join(map(str, shape)).encode(), raw]
    return hashlib.sha256(b"".join(struct.pack("<Q", len(item)) + item for item in items)).hexdigest()
