"""Where a training run writes: a concept file, and what lies beside it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infusion_core.atomic import check_writable
from infusion_core.errors import InfusionError
from infusion_core.previews import clear_strips
from infusion_core.snapshot_files import CHART_END, every_snapshot, file_of
from infusion_core.tensor_file import SUFFIX

from .output import write_report


@dataclass(frozen=True)
class Places:
    """The files of one run.

    Attributes:
        out: the concept file, ``NAME.safetensors``.
    """

    out: Path

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots."""
        return self.out.with_suffix(".snapshots")

    @property
    def state(self) -> Path:
        """What `--resume` goes on from; it belongs to the last run that was started."""
        return self.snapshots / "state.safetensors"

    @property
    def earlier(self) -> Path:
        """The folder of what the run before this one left of snapshots."""
        return self.snapshots / "earlier"

    @property
    def overfitting(self) -> Path:
        """The picture of how overfitted the run was."""
        return self.out.with_suffix(CHART_END)

    @property
    def page(self) -> Path:
        """The page that shows the run."""
        return self.out.with_suffix(".html")

    @property
    def reports(self) -> tuple[Path, Path]:
        """The concept's own report, and the report of the newest run in the folder."""
        return self.out.with_suffix(".report.json"), self.out.with_name("report.json")

    def snapshot(self, step: int) -> Path:
        """The concept file after a step."""
        return self.snapshots / file_of(step)

    def check(self) -> None:
        """See that all of it can be written; makes the folder.

        Raises:
            InfusionError: it cannot.
        """
        if self.out.suffix != SUFFIX:
            raise InfusionError(f"--out names the concept file and must end in {SUFFIX}, got {self.out}")
        try:
            folders = [path for path in (self.out, self.page, self.overfitting, *self.reports) if _is_folder(path)]
            kept = _is_folder(self.snapshots)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InfusionError(f"cannot write {self.out}: {reason}; choose another --out") from error
        if folders:
            raise InfusionError(f"{folders[0]} is a folder, where a file must go; choose another --out")
        if kept is False:
            raise InfusionError(f"{self.snapshots} is no folder, where snapshots must go; choose another --out")
        for folder in (self.out.parent, self.snapshots) if kept else (self.out.parent,):
            check_writable(folder)

    def set_aside(self) -> bool:
        """Make room for a new run: an earlier one's snapshots and state go to `earlier`, its pictures go.

        Returns:
            Whether there were snapshots.

        Raises:
            InfusionError: they cannot be moved.
        """
        snapshots = every_snapshot(self.snapshots)
        try:
            clear_strips(self.snapshots)
            for path in every_snapshot(self.earlier) if snapshots else ():
                path.unlink()
            for path in (*snapshots, self.state):
                if path.exists():
                    self.earlier.mkdir(exist_ok=True)
                    path.replace(self.earlier / path.name)
        except OSError as error:
            what = error.filename or self.state
            raise InfusionError(f"cannot move {what}: {error.strerror or error}; move it yourself") from error
        return bool(snapshots)

    def write_reports(self, report: dict[str, Any]) -> None:
        """Write the report in both places: another concept in the folder keeps its own."""
        for path in self.reports:
            write_report(path, report)


def _is_folder(path: Path) -> bool | None:
    """Whether a path is a folder; None where nothing is.

    Raises:
        OSError, ValueError: nothing can be there.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return None
