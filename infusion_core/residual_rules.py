"""What a concept may be, by docs/residual-format.md: for reading and for writing, so that what loads can be saved."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

import torch
from torch import Tensor

from .captions import class_word
from .errors import InfusionError, printable
from .residuals import BY_BLOCK, LAYOUTS, MOST_NUMBERS, REPLACEMENT_END, ConceptResidual, architecture_name
from .thumbnails import check_picture

MOST_PLACES = 512  # SDXL has 70 sites
# Of the training settings. At 14 bytes a letter, escaped twice, they and the largest thumbnail still fit the header.
MOST_LETTERS, LONGEST_KEY, LONGEST_TEXT = 32_768, 64, 1000
WIDEST = 65536
NARROWEST = 16  # no text encoder is narrower; below it lie test files, such as the reference files, of any base
PREDICTIONS = ("epsilon", "v_prediction")
LARGEST = 65520.0  # numbers from here on are infinite in 16 bits

_BASE = re.compile(r"[a-z0-9_-]{1,32}")
_SHARE = re.compile(r"0\.[0-9]{1,6}|1|1\.0")
_BLOCK = re.compile(r"mid|(down|up)\.[0-9]{1,3}")
_SITE = re.compile(r"(input|middle|output)\.[0-9]{1,3}\.[0-9]{1,3}")


def check_description(concept: ConceptResidual) -> None:
    """Everything but the residuals.

    Raises:
        ValueError: with the reason.
    """
    word_of(concept.word)
    if concept.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {quoted(concept.layout)}")
    if concept.prediction not in PREDICTIONS:
        raise ValueError(f"unknown prediction type {quoted(concept.prediction)}")
    _check_base(concept.architecture, concept.context_width)
    _check_training(concept.training)
    if concept.thumbnail is not None:
        check_picture(concept.thumbnail)


def check_shapes(concept: ConceptResidual, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The residuals' places and shapes, (bins, tokens, width) each, before any of them is made.

    Raises:
        ValueError: with the reason.
    """
    place = _BLOCK if concept.layout in BY_BLOCK else _SITE
    for name, shape in shapes.items():
        if not place.fullmatch(name):
            raise ValueError(f"{quoted(name)} is no place of the layout {concept.layout}")
        if len(shape) != 3 or not all(shape):
            raise ValueError(f"residual.{name} is not a (bins, tokens, width) residual")
        if concept.space == "context" and shape[2] != concept.context_width:
            raise ValueError(f"residual.{name} has width {shape[2]}, not the context width {concept.context_width}")
        if concept.layout == "parts" and shape[2] % (2 * concept.context_width):
            raise ValueError(
                f"residual.{name} has width {shape[2]}, no multiple of twice the context width {concept.context_width}"
            )
    if len({shape[:2] for shape in shapes.values()}) != 1:
        raise ValueError("no residuals, or bins and tokens differ between them")
    if concept.layout == "parts" and len({shape[2] for shape in shapes.values()}) != 1:
        raise ValueError("the number of parts differs between its residuals")
    if len(shapes) > MOST_PLACES or sum(b * t * w for b, t, w in shapes.values()) > MOST_NUMBERS:
        raise ValueError(f"more than {MOST_PLACES} residuals or {MOST_NUMBERS} numbers")


def check_numbers(name: str, tensor: Tensor) -> None:
    """Numbers that can be stored in 16 bits.

    Args:
        name: place.
        tensor: of any floating type.

    Raises:
        ValueError: with the reason.
    """
    low, high = (float(edge) for edge in torch.aminmax(tensor))
    if not -float("inf") < low <= high < float("inf"):  # NaN too
        raise ValueError(f"residual.{name} holds NaN or infinite numbers")
    if max(-low, high) >= LARGEST:
        raise ValueError(f"residual.{name} holds numbers too large for 16 bits")


def word_of(word: str) -> str:
    """The word as it is stored.

    Raises:
        ValueError: no prompt can say it.
    """
    try:
        return class_word(word)
    except InfusionError:
        raise ValueError(f"{quoted(word)} cannot be a concept's word") from None


def is_plain(text: str) -> bool:
    """Whether a text of a file can be kept: UTF-8, no control characters, not endless."""
    return len(text) <= LONGEST_TEXT and (
        text.isprintable() or not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)
    )


def quoted(text: str) -> str:
    """A file's text in a message."""
    return f"'{printable(str(text), 40)}'"


def _check_base(architecture: str, width: int) -> None:
    if not 0 < width <= WIDEST:
        raise ValueError(f"a context width of {width}")
    if not _BASE.fullmatch(architecture):
        raise ValueError(f"{quoted(architecture)} is no base model's family")
    if width >= NARROWEST and architecture != architecture_name(width):
        raise ValueError(f"a context width of {width} is {architecture_name(width)}'s, not {architecture}'s")


def _check_training(training: Mapping[str, str]) -> None:
    if sum(len(key) + len(value) for key, value in training.items()) > MOST_LETTERS:
        raise ValueError(f"more than {MOST_LETTERS} letters of training settings")
    for key, value in training.items():
        if len(key) > LONGEST_KEY or not is_plain(key) or not is_plain(value):
            raise ValueError(f"the training setting {quoted(key)} is too long or holds control characters")
    end = training.get(REPLACEMENT_END)
    if end is not None and not _SHARE.fullmatch(end):
        raise ValueError(f"{REPLACEMENT_END} {quoted(end)}, which is no share of a run, such as 0.4")
