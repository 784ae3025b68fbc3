"""What `infusion train-many` is given: a folder of folders, or a list in CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from infusion_cli.console import say
from infusion_cli.options import checked_path
from infusion_core.captions import CAPTION_TEMPLATES, class_word, word_of
from infusion_core.errors import InfusionError
from infusion_core.photos import begins_as_photo, list_photos
from infusion_core.residuals import Layout, Where
from infusion_core.schedule import RateSchedule
from infusion_core.tensor_file import SUFFIX
from infusion_core.training.objective import Weighting
from infusion_core.training.residual import ResidualSettings

NAME, PHOTOS, WORD, OUT = "name", "photos", "word", "out"
SURPLUS = "surplus cells"  # of a line of CSV
LONGEST_NAME = 200  # bytes, so that .report.json can follow


@dataclass(frozen=True)
class Job:
    """One concept to learn.

    Attributes:
        name: for people, and of its log.
        photos: folder.
        word: class word.
        out: the concept file.
        settings: how to train.
        templates: captions with ``{}`` for the word.
    """

    name: str
    photos: Path
    word: str
    out: Path
    settings: ResidualSettings
    templates: tuple[str, ...] = CAPTION_TEMPLATES


@dataclass(frozen=True)
class Refused:
    """An entry that cannot be a job.

    Attributes:
        name: for people.
        why: and what to do.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Defaults:
    """What an entry does not say.

    Attributes:
        out: folder of the concept files.
        settings: of training.
        word: class word; empty for none.
    """

    out: Path
    settings: ResidualSettings
    word: str = ""


def read_manifest(manifest: Path, defaults: Defaults) -> tuple[list[Job], list[Refused]]:
    """The jobs of a manifest in its order, and the entries that cannot be one.

    Raises:
        InfusionError: the manifest is missing, of another kind, not readable or empty.
    """
    try:
        entries = list(_folders(manifest) if manifest.is_dir() else _lines(manifest))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InfusionError(
            f"{manifest} cannot be read: {error}; give a folder of folders, a .csv or a .jsonl"
        ) from error
    if not entries:
        raise InfusionError(f"{manifest} holds no job; give a folder with a folder of photos for each concept")
    jobs, refused = list[Job](), list[Refused]()
    for number, entry in enumerate(entries, start=1):
        name = str(entry.get(NAME) or Path(str(entry.get(PHOTOS, ""))).name or f"line {number}")
        try:
            jobs.append(_job(name, entry, manifest, defaults))
        except InfusionError as error:
            refused.append(Refused(name, str(error)))
    return _apart(jobs, refused)


def _apart(jobs: list[Job], refused: list[Refused]) -> tuple[list[Job], list[Refused]]:
    """Without the jobs that would write one file, or have one name."""
    files, names = Counter(job.out.resolve() for job in jobs), Counter(job.name for job in jobs)
    alone = []
    for job in jobs:
        if files[job.out.resolve()] > 1:
            refused.append(
                Refused(job.name, f"{files[job.out.resolve()]} jobs write {job.out}; give each its own {OUT!r}")
            )
        elif names[job.name] > 1:
            refused.append(
                Refused(job.name, f"{names[job.name]} jobs are called {job.name!r}; give each its own {NAME!r}")
            )
        else:
            alone.append(job)
    return alone, refused


def _folders(manifest: Path) -> Iterator[Mapping[str, Any]]:
    """A folder's folders that have photos; says which have none."""
    for folder in sorted(path for path in manifest.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            none = not any(map(begins_as_photo, list_photos(folder)))
        except InfusionError:  # its job tells
            none = False
        if none:
            say(f"Passed over {folder}: no photos in it (JPEG, PNG, WebP, BMP or GIF)")
        else:
            yield {PHOTOS: folder.name}


def _lines(manifest: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a list."""
    if manifest.suffix == ".csv":
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            yield from ({k: v for k, v in row.items() if v and any(v)} for row in csv.DictReader(file, restkey=SURPLUS))
        return
    if manifest.suffix != ".jsonl":
        raise InfusionError(f"{manifest} is neither a folder nor a .csv or .jsonl; give one of them")
    for number, line in enumerate(manifest.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            yield _object(manifest, number, line)


def _object(manifest: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InfusionError(f"line {number} of {manifest} is not JSON: {error}; write one object per line") from error
    if not isinstance(found, dict):
        raise InfusionError(f'line {number} of {manifest} is no object; write one such as {{"photos": "cat"}}')
    return found


def _job(name: str, entry: Mapping[str, Any], manifest: Path, defaults: Defaults) -> Job:
    """Raises InfusionError: the entry says what cannot be."""
    beside = manifest if manifest.is_dir() else manifest.parent
    if SURPLUS in entry:
        raise InfusionError(f"it has more cells than the heading, {entry[SURPLUS]}; put quotes round what has a comma")
    unknown = sorted({str(key) for key in entry} - {NAME, PHOTOS, WORD, OUT, *_SETTINGS})
    if unknown:
        raise InfusionError(f"unknown column {unknown[0]!r}; there are name, photos, word, out, {', '.join(_SETTINGS)}")
    if Path(name).name != name or name.startswith(".") or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise InfusionError(f"{NAME!r} must be able to name a file, got {name!r}")
    if not entry.get(PHOTOS):
        raise InfusionError(f"it names no folder of photos; add {PHOTOS!r}")
    photos = checked_path(beside / str(entry[PHOTOS]))
    if not photos.is_dir():
        raise InfusionError(f"there is no folder {photos}; correct {PHOTOS!r}")
    word = class_word(str(entry[WORD])) if entry.get(WORD) else word_of(photos, defaults.word)
    out = _place(defaults.out, str(entry.get(OUT) or f"{name}{SUFFIX}"))
    chosen = {key: _SETTINGS[key](key, value) for key, value in entry.items() if key in _SETTINGS}
    return Job(name, photos, word, out, replace(defaults.settings, **chosen))


def _place(folder: Path, asked: str) -> Path:
    """Where a concept goes.

    Raises:
        InfusionError: it is no concept file, not in the folder, or cannot be written.
    """
    out = checked_path(folder / asked)
    if out.suffix != SUFFIX:
        raise InfusionError(f"{OUT!r} names the concept file and must end in {SUFFIX}, got {out.name}")
    if not Path(os.path.normpath(out)).is_relative_to(os.path.normpath(folder)):
        raise InfusionError(f"{OUT!r} must lie in the folder --out, {folder}, got {asked}")
    if out.is_dir():
        raise InfusionError(f"{out} is a folder, where a file must go; correct {OUT!r}")
    if inside := next((path for path in out.parents if path.is_file()), None):
        raise InfusionError(f"{inside} is a file, where a folder must go; correct {OUT!r}")
    return out


def _number(kind: Callable[[str], Any], what: str) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        try:
            return kind(str(value))
        except ValueError:
            raise InfusionError(f"{name} must be {what}, got {value!r}") from None

    return read


def _one_of(kind: Any) -> Callable[[str, Any], Any]:
    names = get_args(kind)

    def read(name: str, value: Any) -> Any:
        if value not in names:
            raise InfusionError(f"{name} must be {' or '.join(names)}, got {value!r}")
        return value

    return read


def _switch(name: str, value: Any) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise InfusionError(f"{name} must be true or false, got {value!r}")
    return found


_WHOLE, _REAL = _number(int, "a whole number"), _number(float, "a number")
_SETTINGS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("steps", "batch_size", "accumulation", "bins", "parts", "seed"), _WHOLE),
    **dict.fromkeys(("learning_rate", "replacement_end"), _REAL),
    "layout": _one_of(Layout),
    "where": _one_of(Where),
    "schedule": _one_of(RateSchedule),
    "weighting": _one_of(Weighting),
    "replace_maps": _switch,
}
