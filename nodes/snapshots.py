"""Snapshots of training runs: a folder per run, which of them stay, and what an interrupted run goes on from.

Those of concepts are below ``output/infusion/snapshots``, those of LoRAs where every node that loads LoRAs finds them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ..infusion_core.atomic import check_writable, clear_leftovers
from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.previews import Strip, strips_in
from ..infusion_core.residual_file import load_concept
from ..infusion_core.snapshot_files import file_of, is_of_a_step
from ..infusion_core.tensor_file import SUFFIX
from ..infusion_core.training.state import TrainState, load_state, save_state
from . import library
from .resuming import Given
from .widgets import below, plain_name

RUNS_KEPT = 5
_RUN = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-.+")  # date, time, word
LORAS = "apt/"  # in front of a run that learned a LoRA
STATE = "training.state"  # beside the snapshots of a run that has not ended; no suffix that loaders list


@dataclass
class RunFolder:
    """The folder of one training run, made when its first snapshot is written.

    Attributes:
        word: the subject's.
        root: of all such runs.
        kept: of those, the newest that stay; None for all.
    """

    word: str
    root: Path
    kept: int | None = None
    _folder: Path | None = field(default=None, init=False)

    def check(self) -> None:
        """See that snapshots can be written, before anything is learned that they would keep.

        Raises:
            InfusionError: they cannot.
        """
        check_writable(self.root)

    @property
    def name(self) -> str:
        """Of the folder; empty before there is one."""
        return "" if self._folder is None else self._folder.name

    def kept_at(self, step: int) -> Path | None:
        """The snapshot of a step, if it is there."""
        path = None if self._folder is None else self._folder / file_of(step)
        return path if path is not None and path.is_file() else None

    def interrupted(self, given: Given) -> TrainState | None:
        """Where the newest run stands that was given the same and has not ended; its folder becomes this run's."""
        for file in sorted(self.root.glob(f"*/{STATE}"), reverse=True):
            try:
                state = load_state(file)
            except InfusionError as error:  # a crash cannot leave half a file, but a disk can
                logging.warning("Infusion: %s", error)
                continue
            if given.is_of(state.told.get("given", {})):
                self._folder = file.parent
                return state
        return None

    def save_state(self, state: TrainState) -> None:
        """Keep what a run that is interrupted goes on from; a snapshot has been saved.

        Raises:
            InfusionError: the disk is full.
        """
        assert self._folder is not None
        save_state(self._folder / STATE, state)

    def keep_strip(self, strip: Strip) -> None:
        """Keep what was drawn after a step beside its snapshot, which has been saved.

        Raises:
            InfusionError: the disk is full.
        """
        assert self._folder is not None
        strip.save(self._folder)

    def strips(self, prompts: tuple[str, ...], last: int) -> list[Strip]:
        """What was drawn of the same prompts up to a step."""
        return [] if self._folder is None else strips_in(self._folder, prompts, last)

    def ended(self) -> None:
        """The run has ended, so none goes on from it."""
        if self._folder is not None:
            (self._folder / STATE).unlink(missing_ok=True)

    def save(self, step: int, write: Callable[[Path], object]) -> Path:
        """Write what has been learned after a step; runs beyond the newest that stay go when the first is written.

        Args:
            step: of the training.
            write: writes a file.

        Raises:
            InfusionError: the disk is full.
        """
        first = self._folder is None
        folder = self._folder = self._folder or _new_folder(self.root, self.word)
        path = folder / file_of(step)
        write(path)
        if first and self.kept is not None:
            clear(folder, self.kept)
        return path


def concept_run(word: str) -> RunFolder:
    """The folder of a run that learns a concept."""
    return RunFolder(word, root(), RUNS_KEPT)


def lora_run(phrase: str) -> RunFolder:
    """The folder of a run that learns a LoRA; all stay, since graphs load them from there."""
    return RunFolder(phrase, lora_root())


def lora_root() -> Path:
    """The folder of all snapshots of LoRAs."""
    return library.output().parent / "loras" / "apt"


def root() -> Path:
    """The folder of all snapshots of concepts."""
    return library.output() / library.SNAPSHOTS


def names() -> list[str]:
    """Every snapshot as ``run/step-00050``, the newest run first, its last step first."""
    found = [path.relative_to(root()).with_suffix("").as_posix() for path in root().rglob(f"*{SUFFIX}")]
    return sorted(found, key=lambda name: (bool(_RUN.match(name)), name.split("/")), reverse=True)


def runs() -> list[str]:
    """Every run with snapshots, the newest first; those that learned a LoRA begin with ``apt/``."""
    folders = [
        (folder.name, f"{prefix}{folder.name}")
        for prefix, place in (("", root()), (LORAS, lora_root()))
        for folder in (place.iterdir() if place.is_dir() else ())
        if folder.is_dir() and any(is_of_a_step(file.name) for file in folder.iterdir())
    ]
    return [name for _, name in sorted(folders, key=lambda found: (bool(_RUN.match(found[0])), found), reverse=True)]


def run_of(name: str) -> Path:
    """The folder of a listed run.

    Raises:
        InfusionError: it is gone.
    """
    place = lora_root() if name.startswith(LORAS) else root()
    path = below(place, name.removeprefix(LORAS))
    if path is None or path.parent != place.resolve() or not path.is_dir():
        raise InfusionError(f"there is no run {name!r}; press R to refresh the list, and choose another")
    return path


def path_of(name: str) -> Path:
    """Where a listed snapshot lies.

    Raises:
        InfusionError: it is gone.
    """
    path = below(root(), name + SUFFIX)
    if path is None or not path.is_file():
        raise InfusionError(f"there is no snapshot {name!r}; press R to refresh the list, and choose another")
    return path


def load(name: str, strength: float) -> LoadedConcept:
    """Read a listed snapshot.

    Raises:
        InfusionError: it is gone, damaged or not a concept.
    """
    return LoadedConcept(name.replace("/", "-"), load_concept(path_of(name), name), strength)


def clear(keep: Path, kept: int) -> None:
    """Remove the folders of all but the newest runs.

    A folder that was renamed, or holds anything but snapshots, is the user's: it is neither counted nor touched.

    Args:
        keep: the folder of the run that is going on; it stays and counts.
        kept: runs that stay.
    """
    others = sorted((path for path in keep.parent.iterdir() if path != keep and _is_ours(path)), reverse=True)
    for folder in others[kept - 1 :]:
        try:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        except OSError as error:
            logging.warning("Infusion: cannot clear the old snapshots in %s: %s", folder, error)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is named as a run is, and holds nothing but snapshots (and what a killed run was writing)."""
    if folder.is_symlink() or not folder.is_dir() or not _RUN.fullmatch(folder.name):
        return False
    clear_leftovers(folder)
    kept = [f for f in folder.iterdir() if f.name != STATE]
    return all(is_of_a_step(f.name) and f.is_file() and not f.is_symlink() for f in kept)


def _new_folder(root: Path, word: str) -> Path:
    """A folder named by date, time and word; with a number if another run began in the same second.

    Raises:
        InfusionError: it cannot be made.
    """
    name, number = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{plain_name(word)}", 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InfusionError(f"cannot make the folder {folder}: {error.strerror}; free some space") from error
