"""One training run as its node shows it: a progress bar, previews, snapshots, an interrupt that loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image

from ..infusion_core.training.engine import StepReport, Trainer
from ..infusion_core.training.overfitting import Indicator
from ..infusion_core.training.record import RunRecord
from .plot import stacked, standing
from .snapshots import RunFolder

SHOWN_PX = 512  # edge of what the node shows


@dataclass
class Run:
    """A run.

    Attributes:
        trainer: does the work.
        record: of the run.
        draw: draws what has been learned so far; None for no previews.
        write: writes it to a file.
        snapshots: where the run's snapshots go.
        indicator: of overfitting, shown beside the previews; None where the run takes none.
    """

    trainer: Trainer[Any]
    record: RunRecord
    draw: Callable[[], Image.Image] | None
    write: Callable[[Path], object]
    snapshots: RunFolder
    indicator: Indicator | None = None

    def train(self) -> None:
        """Train to the end, showing progress; at snapshots write a file and draw a picture.

        Raises:
            InterruptProcessingException: the user stopped the run; what was learned is in a snapshot.
        """
        bar = comfy.utils.ProgressBar(self.record.settings.steps)
        picture: Image.Image | None = None
        try:
            for report in self.trainer.run():
                picture = self._after(report) or picture
                bar.update_absolute(report.step, None, self._shown(picture, report))
                comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            self._snapshot()
            raise

    def _after(self, report: StepReport) -> Image.Image | None:
        """Note a step; at a snapshot write a file and, if wanted, draw a picture."""
        self.record.add(report, None if self.indicator is None else self.indicator.gamma.tolist())
        if report.validation_loss is None:
            return None
        self._snapshot()
        return None if self.draw is None else self.draw()

    def _shown(self, picture: Image.Image | None, report: StepReport) -> tuple[str, Image.Image, int] | None:
        """What the node shows after a step."""
        parts = [] if picture is None else [picture]
        if self.indicator is not None and (picture is not None or report.step % 10 == 0):
            parts.append(standing(self.indicator.gamma.tolist()))
        return ("JPEG", stacked(parts), SHOWN_PX) if parts else None

    def _snapshot(self) -> None:
        """Write what has been learned as it is now."""
        self.snapshots.save(self.trainer.step, self.write)
