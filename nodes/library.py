"""Concept files where ComfyUI users keep them: ``models/infusion``, extra model paths, and the output folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths

from ..infusion_core.atomic import write_new
from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.residual_file import Storage, concept_bytes, load_concept
from ..infusion_core.residuals import ConceptResidual
from ..infusion_core.tensor_file import SUFFIX
from .widgets import below

FOLDER = "infusion"
SNAPSHOTS = "snapshots"  # below the output folder; `snapshots.py` keeps it


def register_folders() -> None:
    """Make ``infusion`` a model folder; paths from extra_model_paths.yaml stay."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.get_output_directory()) / FOLDER))
    paths, suffixes = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*suffixes, SUFFIX})


def output() -> Path:
    """Where the nodes write."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def names() -> list[str]:
    """Every concept file, relative to its folder; snapshots of training runs are not among them."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if not _is_snapshot(name)]


def path_of(name: str) -> Path:
    """Where a listed concept file lies.

    Raises:
        InfusionError: it is gone.
    """
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise InfusionError(f"there is no concept file {name!r}; press R to refresh the list, and choose another")
    return Path(found)


def fingerprint(*names: str | None) -> str:
    """Changes when what is in listed files changes, whatever their dates say; None is a name that is not known yet.

    Raises:
        InfusionError: one is gone.
    """
    return " ".join(digest(path_of(name)) for name in names if name is not None)


def digest(path: Path) -> str:
    """SHA-256 of a file of any size."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def load(name: str, strength: float) -> LoadedConcept:
    """Read a listed concept file. Errors call it by its name in the list, not by its path on the server.

    Raises:
        InfusionError: it is gone, damaged or not a concept.
    """
    return LoadedConcept(Path(name).stem, load_concept(path_of(name), name), strength)


def save(concept: ConceptResidual, prefix: str, storage: Storage = "fp16") -> Path:
    """Write a concept below the output folder; an existing file is never overwritten, a number is added instead.

    That holds for several threads and processes that save one name at once, too. Nor is a name taken that another
    model folder has, for loaders would open that file.

    Raises:
        InfusionError: the name leaves the output folder, or is that of snapshots, or the disk is full.
    """
    wanted, data = _inside(prefix), concept_bytes(concept, storage)
    path, number = wanted.with_name(wanted.name + SUFFIX), 2
    while _listed(path) or not write_new(path, data):
        path, number = wanted.with_name(f"{wanted.name}-{number}{SUFFIX}"), number + 1
    return path


def is_hidden(path: Path) -> bool:
    """Whether loaders open another model folder's file under the name of one below the output folder."""
    found = _listed(path)
    return found is not None and found.resolve() != path.resolve()


def folder_below(name: str) -> Path:
    """A folder below the output folder.

    Raises:
        InfusionError: the name leaves it, or is that of snapshots.
    """
    return _inside(name)


def _listed(path: Path) -> Path | None:
    """What loaders open under the name of a file below the output folder, which may be another model folder's."""
    found = folder_paths.get_full_path(FOLDER, str(path.relative_to(output().resolve())))
    return None if found is None else Path(found)


def _is_snapshot(name: str) -> bool:
    if Path(name).parts[0] != SNAPSHOTS:
        return False
    found = folder_paths.get_full_path(FOLDER, name)  # None of a link to nothing
    return found is None or Path(found).is_relative_to(output())


def _inside(prefix: str) -> Path:
    path = below(output(), prefix.strip().removesuffix(SUFFIX))
    if path is None:
        raise InfusionError(f"{prefix!r} is not a file name below the output folder; write a name such as 'my-cat'")
    if path.relative_to(output().resolve()).parts[0] == SNAPSHOTS:
        raise InfusionError(f"{prefix!r} is among the snapshots of training; write a name such as 'my-cat'")
    return path
