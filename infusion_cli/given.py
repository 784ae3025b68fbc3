"""What a run was given, and whether a resumed one is given the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.embedded.identity import hash_of_model, hash_of_photo
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.subject import SubjectPhotos
from infusion_core.errors import InfusionError, printable
from infusion_core.training.residual import ResidualSettings

MODEL, PHOTOS, CLASS_PICTURES = "model", "photos", "class pictures"
CAPTIONS, MASKS, FLIP, ASPECT = "photos' own captions", "masks", "flip", "aspect"
# What a run that does not tell a setting had: the setting is younger than it. Maps were replaced throughout.
_DEFAULTS: dict[str, Any] = {
    **asdict(ResidualSettings(replacement_end=1.0)),
    CAPTIONS: [],
    MASKS: [],
    FLIP: False,
    ASPECT: False,
}


def given_before_loading(
    word: str, templates: Sequence[str], settings: ResidualSettings, start: Path | None
) -> dict[str, Any]:
    """All that decides what is learned but photos and model, as JSON; how often snapshots are kept does not."""
    return {
        "continue": start and hashlib.sha256(start.read_bytes()).hexdigest(),
        "word": word,
        "template": list(templates),
        **settings.told,
    }


def given_photos(photos: SubjectPhotos, flip: bool = False, aspect: bool = False) -> dict[str, Any]:
    """The photos as they were read, what is known of them, and how they are shown, as JSON."""
    masks = [mask and hash_of_photo(mask.convert("RGB")) for mask in photos.masks]
    return {
        PHOTOS: [hash_of_photo(photo) for photo in photos.pictures],
        CAPTIONS: [list(lines) for lines in photos.captions] if any(photos.captions) else [],
        MASKS: masks if any(masks) else [],
        FLIP: flip,
        ASPECT: aspect,
    }


def given_class(pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """Pictures of the class as they were read, as JSON."""
    return {CLASS_PICTURES: [hash_of_photo(picture) for picture in pictures]}


def given_model(model: EmbeddedModel) -> dict[str, Any]:
    """The model, as JSON."""
    return {MODEL: {"name": model.name, "hash": hash_of_model(model)}}


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a resumed run is given what the interrupted one was, as far as `now` tells.

    Raises:
        InfusionError: it is not; names every difference.
    """
    changed = [_difference(name, before.get(name, _DEFAULTS.get(name)), value) for name, value in now.items()]
    if any(changed):
        raise InfusionError(
            f"--resume goes on with the settings of the interrupted run, but {' and '.join(filter(None, changed))}; "
            "give the same again, or leave --resume out to train from the start"
        )


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs, in words; empty where nothing does."""
    if name == MODEL:  # the name is for people: a model that was moved or renamed is the same
        other = "other weights of that name" if before["name"] == now["name"] else before["name"]
        return "" if before["hash"] == now["hash"] else f"the model was {other}"
    if before == now:
        return ""
    if name in (PHOTOS, CLASS_PICTURES):
        return _other_photos(before, now, "photo" if name == PHOTOS else "class picture")
    if name in (CAPTIONS, MASKS):
        return f"the {name} were others"
    if name == "continue":
        return "--continue was not given" if before is None else "--continue was given another concept"
    return f"{name.replace('_', '-')} was {printable(str(before))}"


def _other_photos(before: Sequence[str], now: Sequence[str], what: str) -> str:
    if len(before) != len(now):
        return f"there were {len(before)} {what}s, not {len(now)}"
    others = [str(number) for number, pair in enumerate(zip(before, now, strict=True), 1) if pair[0] != pair[1]]
    return f"{what} {', '.join(others)} of {len(now)} was another"
