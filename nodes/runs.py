"""One training run as its node shows it: a progress bar, previews, snapshots; an interrupt or a crash loses nothing."""

from __future__ import annotations

import logging
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
    """

    trainer: Trainer[Any]
    record: RunRecord
    previews: Previews
    write: Callable[[Path], object]
    snapshots: RunFolder
    told: Mapping[str, Any]
    indicator: Indicator | None = None
    stop_at: float = 0.0
    _given: Given = field(init=False)

    def train(self) -> None:
        """Train to the end, showing progress; at snapshots write a file and draw a picture.

        A run that was given the same and did not end goes on where it stopped.

        Raises:
            InterruptProcessingException: the user stopped the run; what was learned is in a snapshot.
        """
        self._given = Given.of(self.trainer, self.told)
        self._resume()
        bar = comfy.utils.ProgressBar(self.record.settings.steps)
        clock = Clock(self.trainer.step)
        picture: Image.Image | None = None
        try:
            for report in self.trainer.run():
                picture = self._after(report) or picture
                bar.update_absolute(report.step, None, self._shown(picture, report))
                if clock.due(report):
                    tell(clock.told(report))
                if self.indicator is not None and self.indicator.reached(self.stop_at):
                    self._end_early(report)
                    break
                comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            self._snapshot()
            raise
        self.snapshots.ended()

    def _end_early(self, report: StepReport) -> None:
        """The photos are known by heart as far as the user wants."""
        self._snapshot()
        said = f"ended at step {report.step} of {report.steps}: overfitted {self.stop_at:g} (stop_at)"
        logging.info("Infusion: training %s", said)
        tell(said)

    def _resume(self) -> None:
        """Go on with an interrupted run, if there is one, and say so."""
        state = self.snapshots.interrupted(self._given)
        if state is None:
            return
        self.trainer.resume(state)
        self.record.restore(state.told["course"])
        self.previews.restore(state.step, self.snapshots)
        said = f"goes on after step {state.step} of the interrupted run {self.snapshots.name}"
        logging.info("Infusion: training %s", said)
        tell(said)

    def _after(self, report: StepReport) -> Image.Image | None:
        """Note a step; at a snapshot write a file and, if wanted, draw a picture."""
        self.record.add(report, None if self.indicator is None else self.indicator.gamma.tolist())
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
