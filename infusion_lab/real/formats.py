"""The two published datasets of subjects as files: DreamBooth's and CustomConcept101."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infusion_core.embedded.photos import load_photos
from infusion_core.errors import InfusionError

from ..methods.method import Subject
from .dataset import Dataset, Pair, apart, consecutive
from .files import inside, text_of

CLASSES, CONCEPTS, TOGETHER = "prompts_and_classes.txt", "dataset.json", "dataset_multiconcept.json"
AGAIN = "get this file of the dataset again"
LIVE = ("cat", "dog")  # DreamBooth's classes that take the prompts of live subjects
# DreamBooth's dataset asks for one subject at a time.
PAIR_PROMPTS = (
    "a photo of a {0} and a {1}",
    "a {0} and a {1} on the beach",
    "a {1} and a {0} in the snow",
    "a {0} next to a {1} in the jungle",
    "a {1} next to a {0} on a cobblestone street",
    "a {0} and a {1} on top of a wooden floor",
    "a {1} and a {0} with a city in the background",
    "an oil painting of a {0} and a {1}",
)
_CLASS = re.compile(r"^([\w-]+),([\w -]+)$", re.MULTILINE)
_PROMPT = re.compile(r"^'(.*)'\.format\(", re.MULTILINE)
_FIELD = re.compile(r"\{[^{}]*\}|[{}]")


def read_dataset(folder: Path, rare_word: str, edge: int | None = None) -> Dataset:
    """Read either dataset, by the files that a folder holds.

    Args:
        folder: ``dataset`` of DreamBooth's repository, or ``customconcept101`` of Custom Diffusion's with the photos
            unpacked in it; subjects without a folder of photos are left out.
        rare_word: stands for each subject.
        edge: px of the squares that are wanted of photos, see `load_photos`.

    Raises:
        InfusionError: it is neither dataset, or a file of it is missing or not of its form, or no subject has photos.
    """
    for file, read in _READERS.items():
        if (folder / file).is_file():
            return read(folder, rare_word, edge)
    raise InfusionError(
        f"{folder} has neither {CLASSES} nor {CONCEPTS}; give the folder 'dataset' of DreamBooth's repository, or "
        "'customconcept101' of Custom Diffusion's (--dataset)"
    )


# -- DreamBooth -----------------------------------------------------------------------------------------------------


def _dreambooth(folder: Path, rare_word: str, edge: int | None) -> Dataset:
    """A folder of photos per subject; class words and prompts are in one file, a Python-like text."""
    path = folder / CLASSES
    classes, _, rest = text_of(path, AGAIN).partition("Object Prompts")
    objects, live = (
        tuple(p.replace("{0} {1}", "{}") for p in _PROMPT.findall(part))
        for part in rest.partition("Live Subject Prompts")[::2]
    )
    subjects = tuple(
        Subject(name, word, tuple(load_photos(folder / name, edge)), rare_word)
        for name, word in sorted(_CLASS.findall(classes))
        if (folder / name).is_dir()
    )
    if not subjects or not objects or not live:
        raise InfusionError(f"{path} names no subject with photos, or no prompts; check that it is DreamBooth's own")
    words = dict.fromkeys(s.word for s in subjects)
    return Dataset(
        "DreamBooth's dataset",
        subjects,
        {s.name: live if s.word in LIVE else objects for s in subjects},
        tuple(p.format(w) for w in words for p in dict.fromkeys((*objects, *live))),
        tuple(consecutive(subjects, PAIR_PROMPTS)),
    )


# -- CustomConcept101 -----------------------------------------------------------------------------------------------


def _custom_concepts(folder: Path, rare_word: str, edge: int | None) -> Dataset:
    """A list of subjects with class words, folders and files of prompts; one prompt a line."""
    path = folder / CONCEPTS
    subjects, templates = list[Subject](), dict[str, tuple[str, ...]]()
    for number, entry in enumerate(_list(path), start=1):
        where = f"entry {number} of {path}"
        photos = _inside(folder, entry, "instance_data_dir", where)
        if photos.is_dir():
            word = _string(entry, "class_prompt", where)
            subjects.append(Subject(photos.name, word, tuple(load_photos(photos, edge)), rare_word))
            templates[photos.name] = _prompts(_inside(folder, entry, "prompt_filename", where), ("{}",))
    if not subjects:
        raise InfusionError(
            f"no subject of {path} has photos there; unpack benchmark_dataset.zip of CustomConcept101 in {folder}"
        )
    captions = dict.fromkeys(p.format(s.word) for s in subjects for p in templates[s.name])
    return Dataset("CustomConcept101", tuple(subjects), templates, tuple(captions), _together(folder, subjects))


def _together(folder: Path, subjects: Sequence[Subject]) -> tuple[Pair, ...]:
    """The pairs of the list of several concepts whose subjects have photos and can be told apart."""
    path, by_name = folder / TOGETHER, {s.name: s for s in subjects}
    if not path.is_file():
        return ()
    found = []
    for number, entry in enumerate(_list(path), start=1):
        where = f"entry {number} of {path}"
        if not isinstance(entry, list) or len(entry) != 3:
            raise InfusionError(f"{where} is not two concepts and their prompts; {AGAIN}")
        one, other = (by_name.get(_inside(folder, e, "instance_data_dir", where).name) for e in entry[:2])
        if one and other and apart(one, other):
            prompts = _prompts(_inside(folder, entry[2], "prompt_filename_compose", where), ("{0}", "{1}"))
            found.append(Pair((one, other), prompts))
    return tuple(found)


def _prompts(path: Path, fields: Sequence[str]) -> tuple[str, ...]:
    """The lines of a file that hold each of these fields once, and no others."""
    lines = [line.strip() for line in text_of(path, AGAIN).splitlines()]
    found = tuple(line for line in lines if sorted(_FIELD.findall(line)) == sorted(fields))
    if not found:
        raise InfusionError(f"{path} has no prompt with {' and '.join(fields)}; {AGAIN}")
    return found


def _list(path: Path) -> list[Any]:
    try:
        told = json.loads(text_of(path, AGAIN))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, list):
        raise InfusionError(f"{path} is not a list in JSON; {AGAIN}")
    return told


def _string(entry: Any, key: str, where: str) -> str:
    told = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(told, str) or not told.strip():
        raise InfusionError(f"{where} has no {key}; {AGAIN}")
    return told.strip()


def _inside(folder: Path, entry: Any, key: str, where: str) -> Path:
    return inside(folder, _string(entry, key, where), where, AGAIN)


_READERS: Mapping[str, Callable[[Path, str, int | None], Dataset]] = {CLASSES: _dreambooth, CONCEPTS: _custom_concepts}
