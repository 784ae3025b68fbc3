"""What the files of a run's snapshots are called, and which of them lie in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import InfusionError
from .tensor_file import SUFFIX

PICTURE = ".png"  # of what was drawn after a step
CHART_END = ".overfitting.png"  # of the name of the picture that a run draws of itself
_BEFORE = "step-"
_NAME = re.compile(rf"{_BEFORE}\d{{5,}}({re.escape(SUFFIX)}|{re.escape(PICTURE)})")


def file_of(step: int, suffix: str = SUFFIX) -> str:
    """What the file of a step is called: ``step-00050.safetensors``."""
    return f"{_BEFORE}{step:05d}{suffix}"


def is_of_a_step(name: str) -> bool:
    """Whether a file is called like a snapshot, or like what was drawn beside one."""
    return _NAME.fullmatch(name) is not None


def every_snapshot(folder: Path) -> list[Path]:
    """The files of snapshots in a folder, in no order; none where there is no folder."""
    return [path for path in folder.glob(f"*{SUFFIX}") if is_of_a_step(path.name)]


def snapshots_in(folder: Path, steps: Sequence[int] = ()) -> list[tuple[int, Path]]:
    """Step and file of the snapshots in a run's folder, by step.

    Args:
        folder: of the run.
        steps: of those that are wanted; none for all.

    Raises:
        InfusionError: there is none, or none of a step.
    """
    there = {int(path.stem.removeprefix(_BEFORE)): path for path in every_snapshot(folder)}
    if not there:
        raise InfusionError(f"there are no snapshots in {folder}; give the folder of a training run")
    missing = [step for step in steps if step not in there]
    if missing:
        known = ", ".join(map(str, sorted(there)))
        raise InfusionError(f"there is no snapshot of step {missing[0]} in {folder}; choose of: {known}")
    return sorted((step, there[step]) for step in (steps or there))
