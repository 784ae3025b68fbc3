"""One training run as its node shows it: a progress bar, previews, snapshots; an interrupt or a crash loses nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ..infusion_core.training.clock import Clock
from ..infusion_core.training.engine import StepReport, Trainer
from ..infusion_core.training.overfitting import Indicator
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.stopping import Finish
from .host.page import tell
from .plot import stacked, standing
from .previews import Previews
from .resuming import Given
from .snapshots import RunFolder

SHOWN_PX = 1024  # longest edge of what the node shows


@dataclass
class Run:
    """A run.

    Attributes:
        trainer: does the work.
        record: of the run.
        previews: draw what has been learned so far.
        write: writes it to a file.
        snapshots: where the run's snapshots go.
        told: what decides what is learned, see `Given`.
        indicator: of overfitting, shown beside the previews; None where the run takes none.
        stop_at: level of it at which the run ends; 0 for never.
        finish: how else it may end, and what comes out.
    """

    trainer: Trainer[Any]
    record: RunRecord
    previews: Previews
    write: Callable[[Path], object]
    snapshots: RunFolder
    told: Mapping[str, Any]
    indicator: Indicator | None = None
    stop_at: float = 0.0
    finish: Finish = field(default_factory=Finish)
    _given: Given = field(init=False)

    def train(self) -> None:
        """Train to the end, showing progress; at snapshots write a file and draw a picture.

        A run that was given the same and did not end goes on where it stopped.

        Raises:
            InterruptProcessingException: the user stopped the run; what was learned is in a snapshot.
        """
        self._given = Given.of(self.trainer, self.told)
        self._resume()
        if warning := self.record.too_short(self.finish):
            _say(f"will not end early: {warning}")
        bar = comfy.utils.ProgressBar(self.record.settings.steps)
        clock, started = Clock(self.trainer.step), time.monotonic()
        picture: Image.Image | None = None
        try:
            for report in () if self._ended else self.trainer.run():
                picture = self._after(report) or picture
                bar.update_absolute(report.step, None, self._shown(picture, report))
                if clock.due(report):
                    tell(clock.told(report))
                if self._ended and report.step < report.steps:
                    self._end_early(report)
                    break
                comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            self._snapshot()
            raise
        self.snapshots.ended()
        self._conclude(time.monotonic() - started)

    def taken(self) -> Path | None:
        """The file of the snapshot that comes out in place of what was learned last; None for that."""
        step = self.record.taken(self.finish, self.trainer.step)
        return None if step == self.trainer.step else self.snapshots.kept_at(step)

    @property
    def _ended(self) -> str:
        """Why the run ends here, before its last step; empty if it does not."""
        if self.indicator is not None and self.indicator.reached(self.stop_at):
            return f"overfitted {self.stop_at:g} (stop_at)"
        return "it has come to rest (stop)" if self.record.rests(self.finish) else ""

    def _end_early(self, report: StepReport) -> None:
        """The run has gone as far as the user wants."""
        self._snapshot()
        _say(f"ended at step {report.step} of {report.steps}: {self._ended}")

    def _conclude(self, seconds: float) -> None:
        """Say which snapshot comes out, if not the last, and what measuring took."""
        meter, step = self.record.meter, self.trainer.step
        path = self.taken()
        if path is not None:
            _say(f"what comes out is {path.parent.name}/{path.stem}, at which the run came to rest")
        if meter is not None and seconds > 0:
            passes = f"{meter.cost(step):.1%} of its passes, {meter.seconds / seconds:.1%} of its seconds"
            logging.info("Infusion: measuring the training took %s", passes)

    def _resume(self) -> None:
        """Go on with an interrupted run, if there is one, and say so."""
        state = self.snapshots.interrupted(self._given)
        if state is None:
            return
        self.trainer.resume(state)
        self.record.restore(state.told["course"])
        self.previews.restore(state.step, self.snapshots)
        _say(f"goes on after step {state.step} of the interrupted run {self.snapshots.name}")

    def _after(self, report: StepReport) -> Image.Image | None:
        """Note a step; at a snapshot write a file and, if wanted, draw a picture."""
        gamma = None if self.indicator is None else self.indicator.gamma.tolist()
        self.record.add(report, gamma, self.trainer.validated)
        if report.validation_loss is None:
            return None
        self._snapshot()
        return self.previews.take(report.step, self.snapshots)

    def _shown(self, picture: Image.Image | None, report: StepReport) -> tuple[str, Image.Image, int] | None:
        """What the node shows after a step."""
        parts = [] if picture is None else [picture]
        if self.indicator is not None and (picture is not None or report.step % 10 == 0):
            parts.append(standing(self.indicator.gamma.tolist()))
        return ("JPEG", stacked(parts), SHOWN_PX) if parts else None

    def _snapshot(self) -> None:
        """Write what has been learned as it is now, and what to go on from."""
        self.snapshots.save(self.trainer.step, self.write)
        told = {"given": vars(self._given), "course": self.record.course()}
        self.snapshots.save_state(replace(self.trainer.state(), told=told))


def _say(text: str) -> None:
    """On the node and in the log."""
    logging.info("Infusion: training %s", text)
    tell(text)
