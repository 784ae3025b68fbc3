"""What a run shows while it goes on: pictures of what it has learned, and a page that grows."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import BytesIO

from PIL import Image

from infusion_core.atomic import write_atomic
from infusion_core.captions import preview_prompts
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.previews import MOST_ROWS, Strip, spread, strips_in
from infusion_core.training.clock import Clock
from infusion_core.training.record import RunRecord

from .places import Places

PREVIEW_STEPS = 25  # of sampling, at most
LEAST_GAP = 3.0  # seconds between two pages, where no new picture is to be seen
REFRESH = 10  # seconds between two looks of a browser at a page of a living run
SHOWN_PX = 192  # edge of a picture in the page; the file has all of it
Draw = Callable[[str, int], Image.Image]  # a prompt, and the seed of its noise


@dataclass(frozen=True)
class Previews:
    """What a run is to draw.

    Attributes:
        prompts: filled.
        every: steps between two times; 0 for never.
    """

    prompts: tuple[str, ...] = ()
    every: int = 0

    @classmethod
    def asked(cls, templates: Sequence[str], every: int | None, phrase: str, snapshots: int) -> Previews:
        """As a user asks: at every snapshot where only templates are given, never without both.

        Args:
            templates: with ``{}`` for the subject.
            every: steps between two times; None where that is not said.
            phrase: of the subject.
            snapshots: steps between two of them.

        Raises:
            InfusionError: see `preview_prompts`.
        """
        unsaid = snapshots if templates else 0
        return cls(preview_prompts(templates, phrase), unsaid if every is None else every)

    def check(self, model: EmbeddedModel, words: Mapping[str, str] | None = None) -> None:
        """See that a model can read what is to be drawn, before it is trained on.

        Args:
            model: draws.
            words: of the concept, by its name.

        Raises:
            InfusionError: it cannot; names the prompt.
        """
        for prompt in self.prompts if self.every else ():
            try:
                model.text.encode(prompt, words)
            except InfusionError as error:
                raise InfusionError(f"the preview prompt {prompt!r} cannot be drawn: {error}") from error

    def due(self, step: int, steps: int) -> bool:
        """Whether pictures are drawn after a step: every so many, and after the last."""
        return self.every > 0 and (step % self.every == 0 or step == steps)


def draw_quickly(model: EmbeddedModel, prompt: str, seed: int, *concepts: LoadedConcept) -> Image.Image:
    """A picture with a model as it stands, and with concepts, in few steps."""
    settings = SampleSettings(min(PREVIEW_STEPS, model.steps), model.guidance)
    return draw(model, prompt, concepts, 1, seed, settings)[0]


@dataclass
class Live:
    """The shown side of a run.

    Attributes:
        title: of the page.
        previews: what to draw.
        draw: draws a picture with what has been learned so far.
        record: of the run; its numbers are shown.
        places: where pictures and page go.
        strips: what was drawn.
    """

    title: str
    previews: Previews
    draw: Draw
    record: RunRecord
    places: Places
    strips: list[Strip] = field(default_factory=list)
    _clock: Clock = field(default_factory=lambda: Clock(0), init=False)
    _written: float = field(default=0.0, init=False)

    def begin(self, step: int) -> None:
        """A run starts, or goes on after a step."""
        self._clock = Clock(step)
        found = strips_in(self.places.snapshots, self.previews.prompts, step) if step else []
        self.strips = [strip.small for strip in found]

    def look(self, step: int) -> bool:
        """Draw what is due after a step; whether anything was."""
        if not self.previews.due(step, self.record.settings.steps):
            return False
        pictures = tuple(self.draw(prompt, seed) for seed, prompt in enumerate(self.previews.prompts))
        strip = Strip(step, self.previews.prompts, pictures)
        strip.save(self.places.snapshots)
        self.strips.append(strip.small)
        return True

    def show(self) -> None:
        """Write the page of a run that goes on, unless that was only just done."""
        if time.monotonic() - self._written >= LEAST_GAP:
            self.write()

    def write(self, became: str = "") -> None:
        """Write the page, atomically.

        Args:
            became: what the run came to; empty while it goes on, and the page looks again by itself.
        """
        from .curves import curves_of  # matplotlib takes its time, and --help need not wait for it
        from .pages import render_page

        record = self.record
        step, steps = len(record.losses), record.settings.steps
        page = render_page(
            "train.html.j2",
            title=self.title,
            became=became,
            refresh=REFRESH,
            written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            facts=self._facts(step, steps, became),
            done=step / steps,
            prompts=self.previews.prompts,
            strips=[(s.step, list(map(_inline, s.pictures))) for s in reversed(spread(self.strips, MOST_ROWS))],
            curves=curves_of(record),
            snapshots=list(reversed(record.snapshots)),
        )
        write_atomic(self.places.page, page.encode(errors="backslashreplace"))  # paths may be any bytes
        self._written = time.monotonic()

    def _facts(self, step: int, steps: int, became: str) -> dict[str, str]:
        record = self.record
        facts = {"step": f"{step} of {steps}"}
        if not became:
            facts["time left"] = self._clock.left(step, steps)
        if step:
            window, means = record.means
            facts[f"loss, mean of {window}"] = f"{means[-1]:.4f}"
            facts["learning rate"] = f"{record.rates[-1]:.3g}"
        if record.validation:
            facts["validation loss"] = f"{record.validation[-1][1]:.4f}"
        if record.indicator:
            gamma = record.indicator[-1][1]
            facts["known by heart"] = f"{sum(gamma) / len(gamma):.0%}"
        return facts


def _inline(picture: Image.Image) -> str:
    """A picture, small, as the URL of itself."""
    small, buffer = picture.convert("RGB"), BytesIO()
    small.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
