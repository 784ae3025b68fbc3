"""One training run of a command: progress, snapshots, Ctrl-C, and the state that --resume goes on from."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infusion_core.atomic import write_atomic
from infusion_core.embedded.subject import SubjectPhotos, load_subject
from infusion_core.errors import InfusionError
from infusion_core.photos import Skipped, by_name
from infusion_core.snapshot_files import every_snapshot
from infusion_core.training.engine import StepReport, Trainer
from infusion_core.training.overfitting import Indicator
from infusion_core.training.record import RunRecord
from infusion_core.training.state import TrainState, load_state, save_state
from infusion_core.training.stopping import Finish

from .console import Interrupt, progress, say
from .live import Live
from .places import Places


@dataclass
class Course:
    """A run.

    Attributes:
        trainer: does the work.
        record: of the run.
        places: where it writes.
        given: what decides what is learned, see `given`.
        write: writes what has been learned so far to a file; returns its size in bytes.
        what: is learned, for people: ``concept``.
        live: what the run shows; its title is that of the progress bar.
        indicator: of overfitting, where the run takes one.
        stop_at: level of it at which the run ends; 0 for never.
        finish: how else it may end, and what is kept.
    """

    trainer: Trainer[Any]
    record: RunRecord
    places: Places
    given: dict[str, Any]
    write: Callable[[Path], int]
    what: str
    live: Live
    indicator: Indicator | None = None
    stop_at: float = 0.0
    finish: Finish = field(default_factory=Finish)
    _seconds: float = field(default=0.0, init=False)
    _taken: int | None = field(default=None, init=False)

    def begin(self, state: TrainState | None) -> None:
        """Take back the course of an interrupted run, or make room for a new one."""
        if state:
            self.record.restore(state.told["course"])
        else:
            if self.places.set_aside():
                say(f"Snapshots of an earlier run are now in {self.places.earlier}")
        if warning := self.record.too_short(self.finish):
            say(f"Note: {warning}")
        self.live.begin(self.trainer.step)

    def train(self) -> None:
        """Train to the end.

        Raises:
            SystemExit: Ctrl-C or SIGTERM stopped it; what was learned is kept.
        """
        steps, started = self.record.settings.steps, time.monotonic()
        with Interrupt() as interrupt, self._shown(), progress(self.live.title, steps) as advance:
            advance(steps=self.trainer.step)
            for report in () if self._ended else self.trainer.run():
                advance(note=self._after(report))
                if interrupt.asked or self._ended:
                    break
            self._seconds = time.monotonic() - started
            stopped = self.trainer.step < steps and not self._ended
            kept = self.snapshot() if stopped else None
        if stopped:
            say(f"Stopped at step {self.trainer.step}. A usable {self.what} is in {kept}")
            say("Give the same command with --resume to go on.")
            sys.exit(interrupt.exit_code)
        if self.trainer.step < steps:
            say(self._became)

    def _after(self, report: StepReport) -> str:
        """Note a step, and keep and show what is due; what the progress bar says of it."""
        indicator = self.indicator
        gamma = None if indicator is None else indicator.gamma.tolist()
        self.record.add(report, gamma, self.trainer.validated)
        if report.validation_loss is not None:
            self.snapshot()
        if self.live.look(report.step):
            self.live.write()
        elif report.validation_loss is not None:
            self.live.show()
        return f"loss {report.loss:.4f}" + ("" if indicator is None else f", overfitted {indicator.overall:.2f}")

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Have a page from the first step on; at the end it says what became of the run."""
        self.live.write()
        try:
            yield
        except BaseException:
            self.live.write(f"Broken off after step {self.trainer.step}.")
            raise
        self.live.write(self._became)

    @property
    def _became(self) -> str:
        """What became of the run, in words."""
        step, steps = self.trainer.step, self.record.settings.steps
        if step == steps:
            return f"Ended after {steps} steps."
        if self._ended:
            return f"Ended at step {step} of {steps}: {self._ended}"
        return f"Stopped at step {step}; --resume goes on."

    @property
    def _ended(self) -> str:
        """Why the run ends here, before its last step; empty if it does not."""
        if self.indicator is not None and self.indicator.reached(self.stop_at):
            return f"overfitted {self.stop_at:g} (--stop-at)"
        return "it has come to rest (--stop plateau)" if self.record.rests(self.finish) else ""

    def taken(self) -> Path | None:
        """The file of the snapshot that is kept in place of what was learned last; None for that."""
        last = self.trainer.step
        step = self.record.taken(self.finish, last)
        path = self.places.snapshot(step)
        if step == last:
            return None
        if not path.is_file():
            say(f"The best snapshot, {path}, is gone; what was learned last is kept")
            return None
        say(f"Kept is the snapshot of step {step} of {last}, at which it came to rest (--take best)")
        self._taken = step
        return path

    def ending(self) -> dict[str, Any]:
        """How the run ended, for a report."""
        step, meter = self.trainer.step, self.record.meter
        told: dict[str, Any] = {"ended_at": step, "taken_step": step if self._taken is None else self._taken}
        if meter is not None and step:
            told["meter_cost"] = {
                "share_of_passes": meter.cost(step),
                "share_of_seconds": meter.seconds / self._seconds if self._seconds else None,
            }
        return told

    def snapshot(self) -> Path:
        """Write what has been learned so far, and then the state to go on from: one file, so that all of it fits.

        What an interruption had left in between goes then: an uninterrupted run has no such snapshot.
        """
        step = self.trainer.step
        path = self.places.snapshot(step)
        self.write(path)
        self.record.wrote(step, str(path))
        told = {"given": self.given, "course": self.record.course()}
        save_state(self.places.state, replace(self.trainer.state(), told=told))
        known = {Path(snapshot.file).name for snapshot in self.record.snapshots}
        for left in every_snapshot(self.places.snapshots):
            if left.name not in known:
                left.unlink(missing_ok=True)
        return path

    def show_overfitting(self) -> None:
        """Draw how overfitted the run was, step by step, where that was measured."""
        if self.record.indicator:
            from .curves import overfitting_curve  # matplotlib takes its time, and most runs draw nothing

            write_atomic(self.places.overfitting, overfitting_curve(self.record))


def former(places: Places) -> TrainState:
    """The state of the run to go on with.

    Raises:
        InfusionError: there is none, or no such command wrote it.
    """
    path = places.state
    if not path.exists():
        raise InfusionError(f"nothing to resume: there is no {path}; leave --resume out")
    state = load_state(path)
    if state.told.keys() != {"given", "course"} or len(state.told["course"]["losses"]) != state.step:
        raise InfusionError(f"{path} is not the state of a run of this command; leave --resume out to start afresh")
    return state


def say_skipped(files: Sequence[Skipped]) -> None:
    """Name the files that are not taken."""
    for file in by_name(files):
        say(f"Skipped {file}")


def photos_in(
    folder: Path, edge: int, masks: Path | None = None, transparency: bool = True, aspect: bool = False
) -> SubjectPhotos:
    """The photos of a folder, as large as training needs them, with captions and masks; says what is skipped, whose
    transparency is taken for a mask, and which have none though masks are given."""
    skipped: list[Skipped] = []
    photos = load_subject(folder, edge, skipped, masks, transparency, aspect)
    say_skipped(skipped)
    if photos.cut_out:
        names = ", ".join(photos.cut_out)
        say(f"Transparency is the mask of {names}: what is not seen there is not learned (--no-transparency: off)")
    bare = [name for name, mask in zip(photos.names, photos.masks, strict=True) if mask is None]
    if masks is not None and bare:
        say(f"No mask of {', '.join(bare)} (--masks): all of each is learned")
    return photos
