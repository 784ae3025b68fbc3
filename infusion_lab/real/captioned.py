"""A folder of captioned pictures: image files with a ``.txt`` of the same stem, or Hugging Face's imagefolder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.errors import InfusionError
from infusion_core.photos import begins_as_photo, photo_bytes, read_photo

from ..identity import digest
from .files import inside, text_of

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption")
CORRECT = "correct it or take it out (--pictures)"


@dataclass(frozen=True)
class Captioned:
    """A picture's file and what is said of the picture."""

    file: Path
    caption: str


def read_captioned(folder: Path, count: int, seed: int) -> list[Captioned]:
    """Captioned pictures of a folder, in random order.

    Args:
        folder: with ``metadata.jsonl``, or pictures and ``.txt`` files of the same stem, whose first line counts.
        count: pictures at most.
        seed: of the choice and the order.

    Raises:
        InfusionError: there is no such folder, no captioned picture in it, or a caption that is not text.
    """
    if not folder.is_dir():
        raise InfusionError(f"there is no folder {folder}; give a folder of captioned pictures (--pictures)")
    metadata = folder / METADATA
    found = sorted(_listed(metadata) if metadata.is_file() else _beside(folder), key=lambda c: c.file)
    if not found:
        raise InfusionError(
            f"{folder} holds no picture with a caption; put a .txt of the same name beside each picture, or a "
            f"{METADATA} with file_name and text (--pictures)"
        )
    return Random(f"captioned pictures {seed}").sample(found, min(count, len(found)))


def _beside(folder: Path) -> Iterator[Captioned]:
    """Pictures whose captions are in files of the same stem."""
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise InfusionError(f"{folder} cannot be read: {error.strerror}; change its rights (--pictures)") from None
    captions = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    for path in files:
        text = captions.get(path.stem)
        if text and path != text and begins_as_photo(path):
            lines = text_of(text, CORRECT).split("\n")
            caption = next((line.strip() for line in lines if line.strip()), "")
            if caption:
                yield Captioned(path, caption)


def _listed(metadata: Path) -> Iterator[Captioned]:
    """Pictures that a list names, one JSON object a line; those that are not there are left out."""
    for number, line in enumerate(text_of(metadata, CORRECT).split("\n"), start=1):
        where = f"line {number} of {metadata}"
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            name = str(told["file_name"])
            caption = next(told[key].strip() for key in CAPTION_KEYS if key in told)
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
            raise InfusionError(f"{where} is not an object with file_name and text; {CORRECT}") from None
        path = inside(metadata.parent, name, where, CORRECT)
        if caption and begins_as_photo(path):
            yield Captioned(path, caption)


def identity_of(pictures: Sequence[Captioned]) -> str:
    """What they are: every byte of the files, and every caption.

    Raises:
        InfusionError: a file cannot be read.
    """
    found = []
    for picture in pictures:
        with _named(picture.file):
            found.append((hashlib.sha256(photo_bytes(picture.file)).hexdigest(), picture.caption))
    return digest(*found)


def encoded(model: EmbeddedModel, pictures: Sequence[Captioned]) -> Tensor:
    """Latents (N, C, h, w) of pictures, of which one is in memory at a time.

    Raises:
        InfusionError: one is damaged.
    """
    found = []
    for picture in pictures:
        with _named(picture.file):
            found.append(model.encode([read_photo(picture.file, model.resolution)]).cpu())
    return torch.cat(found)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Errors about a picture say which one."""
    try:
        yield
    except InfusionError as error:
        raise InfusionError(f"{file}: {error}; take it out of the folder (--pictures)") from None
