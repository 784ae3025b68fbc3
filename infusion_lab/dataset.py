"""DreamBooth's dataset, as its authors publish it: a folder of photos per subject and ``prompts_and_classes.txt``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infusion_core.embedded.photos import load_photos
from infusion_core.errors import InfusionError

from .methods.method import Subject

LIVE = ("cat", "dog")  # classes that take the prompts of live subjects
_CLASS = re.compile(r"^([\w-]+),([\w -]+)$", re.MULTILINE)
_PROMPT = re.compile(r"^'(.*)'\.format\(", re.MULTILINE)


@dataclass(frozen=True)
class Dataset:
    """Subjects with their class words, and what they are asked for.

    Attributes:
        subjects: in order of their names.
        object_prompts, live_prompts: with ``{}`` where the subject stands.
    """

    subjects: tuple[Subject, ...]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def prompts(self, subject: Subject) -> tuple[str, ...]:
        """The prompts of a subject."""
        return self.live_prompts if subject.word in LIVE else self.object_prompts

    @property
    def captions(self) -> tuple[str, ...]:
        """Every prompt with every class word."""
        words = dict.fromkeys(s.word for s in self.subjects)
        return tuple(p.format(w) for w in words for p in dict.fromkeys((*self.object_prompts, *self.live_prompts)))


def read_dataset(folder: Path, rare_word: str) -> Dataset:
    """Read the dataset.

    Args:
        folder: holds ``prompts_and_classes.txt`` and a folder of photos per subject; subjects without one are left out.
        rare_word: stands for each subject.

    Raises:
        InfusionError: the file is missing or not of that form, or no subject has photos.
    """
    path = folder / "prompts_and_classes.txt"
    if not path.is_file():
        raise InfusionError(f"there is no {path}; give the folder 'dataset' of DreamBooth's repository (--dataset)")
    classes, _, rest = path.read_text().partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    subjects = tuple(
        Subject(name, word, tuple(load_photos(folder / name)), rare_word)
        for name, word in sorted(_CLASS.findall(classes))
        if (folder / name).is_dir()
    )
    prompts = [tuple(p.replace("{0} {1}", "{}") for p in _PROMPT.findall(part)) for part in (objects, live)]
    if not subjects or not all(prompts):
        raise InfusionError(f"{path} names no subject with photos, or no prompts; check that it is DreamBooth's own")
    return Dataset(subjects, *prompts)
