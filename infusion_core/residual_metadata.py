"""The metadata of a concept file: a concept's description as strings, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from .errors import printable
from .residual_rules import LONGEST_TEXT, check_description, is_plain, quoted, word_of
from .residuals import ConceptResidual, Layout
from .tensor_file import is_table_of_strings, parse_json
from .thumbnails import picture_of, thumbnail_url

FORMAT = "infusion-concept"
VERSION = "1"
HASH = "content_sha256"

_NEEDED = ("word", "layout", "base", "context_width", "modelspec.prediction_type")
_MODELSPEC = ("title", "resolution", "date")  # training settings that ModelSpec has keys for
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
MODELSPEC_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}


def metadata_of(concept: ConceptResidual) -> dict[str, str]:
    """A concept's description as the file tells it.

    A setting that could not be read back (a title from an odd file name) is written in letters that can.

    Raises:
        ValueError: a description that no file may have.
    """
    training = {
        key: text if is_plain(text) else printable(text, LONGEST_TEXT) for key, text in concept.training.items()
    }
    check_description(replace(concept, training=training))
    word = word_of(concept.word)
    base = MODELSPEC_ARCHITECTURES.get(concept.architecture, concept.architecture)
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "word": word,
        "layout": concept.layout,
        "base": concept.architecture,
        "context_width": str(concept.context_width),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base}/infusion",
        "modelspec.implementation": "infusion",
        "modelspec.title": training.get("title", word),
        "modelspec.trigger_phrase": word,
        "modelspec.prediction_type": "v" if concept.prediction == "v_prediction" else "epsilon",
    }
    metadata |= {f"modelspec.{key}": training[key] for key in _MODELSPEC if key in training}
    rest = {k: v for k, v in training.items() if k not in _MODELSPEC}
    if rest:
        metadata["training"] = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    if concept.thumbnail is not None:
        metadata["modelspec.thumbnail"] = thumbnail_url(concept.thumbnail)
    return metadata


def description_of(metadata: Mapping[str, str]) -> ConceptResidual:
    """The concept that the metadata tell of, without its residuals.

    Raises:
        ValueError: with the reason.
    """
    for key in _NEEDED:
        if key not in metadata:
            raise ValueError(f"its metadata lack {key}")
    prediction, layout = metadata["modelspec.prediction_type"], metadata["layout"]
    known: dict[str, Layout] = {name: name for name in get_args(Layout)}
    if layout not in known:
        raise ValueError(f"unknown layout {quoted(layout)}")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"unknown prediction type {quoted(prediction)}")
    url = metadata.get("modelspec.thumbnail")
    concept = ConceptResidual(
        word=word_of(metadata["word"]),
        layout=known[layout],
        tensors={},
        architecture=metadata["base"],
        context_width=_width(metadata["context_width"]),
        prediction=_PREDICTIONS[prediction],
        training=_training(metadata),
        thumbnail=None if url is None else picture_of(url),
    )
    check_description(concept)
    return concept


def _width(digits: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", digits):
        raise ValueError(f"{quoted(digits)} is not a context width")
    return int(digits)


def _training(metadata: Mapping[str, str]) -> dict[str, str]:
    """The training settings, those that ModelSpec has keys for among them. The word itself is no title."""
    training = parse_json(metadata.get("training", "{}"))
    if not is_table_of_strings(training):
        raise ValueError("training settings must be strings in one JSON object")
    if not training.keys().isdisjoint(_MODELSPEC):
        raise ValueError("title, resolution and date must not stand among the training settings")
    found = {key: metadata[f"modelspec.{key}"] for key in _MODELSPEC if f"modelspec.{key}" in metadata}
    if found.get("title") == word_of(metadata["word"]):
        del found["title"]
    return {**training, **found}
