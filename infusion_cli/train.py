"""What the command `train` does, apart from reading its options."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.captions import CAPTION_TEMPLATES, class_word, fill
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.photos import find_photos, load_photos, thumbnail
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.photos import Skipped, by_name
from infusion_core.residual_file import Storage, load_concept, save_concept
from infusion_core.residuals import ConceptResidual
from infusion_core.training.engine import Trainer
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.state import TrainState, load_state, save_state

from .alone import alone
from .console import Interrupt, progress, say
from .given import given_before_loading, given_model, given_photos, require_same
from .output import peak_rss_mb
from .places import Places
from .scoring import FIGURES, JUDGES


@dataclass(frozen=True)
class TrainRequest:
    """What `infusion train` was asked for."""

    model: str
    images: Path
    word: str
    out: Path
    settings: ResidualSettings
    templates: tuple[str, ...] = CAPTION_TEMPLATES
    start: Path | None = None
    resume: bool = False
    storage: Storage = "fp16"
    config: Path | None = None

    @property
    def places(self) -> Places:
        """Where the run writes."""
        return Places(self.out)

    def check(self) -> None:
        """See what can be seen without reading or writing anything.

        Raises:
            InfusionError: the word, a template or the place cannot be.
        """
        fill(self.templates, class_word(self.word))
        self.places.check()


@dataclass(frozen=True)
class Trained:
    """What training left: the concept, its report so far, and the photos it saw."""

    concept: ConceptResidual
    report: dict[str, Any]
    photos: list[Image.Image]


def run_train(request: TrainRequest, model: EmbeddedModel | None = None) -> Trained:
    """Train, with a progress bar, snapshots and reports beside the concept file; on TinyWorld the oracle scores it.

    Ctrl-C and SIGTERM write a snapshot and exit with code 130 or 143; ``--resume`` goes on from there.

    Raises:
        InfusionError: bad input, another run is writing the same file, or the disk is full.
    """
    request.check()
    with alone(request.out):
        return train_alone(request, model)


def train_alone(request: TrainRequest, model: EmbeddedModel | None = None, score: bool = True) -> Trained:
    """As `run_train`, for who has checked the request and keeps other runs away already; scores unless told not to."""
    run = _Run.start(request, model)
    run.train()
    concept = run.concept()
    size = save_concept(request.out, concept, request.storage)
    report = run.report(concept, size)
    request.places.write_reports(report)
    judge = JUDGES.get(run.model.name)
    if score and judge is not None:
        report.update(judge(run.model, run.photos, concept))
        request.places.write_reports(report)
    say(f"Wrote {request.out} ({size:,} bytes) and report.json beside it")
    return Trained(concept, report, run.photos)


@dataclass
class _Run:
    """One run of the command: what it works with, and what it has left so far."""

    request: TrainRequest
    model: EmbeddedModel
    photos: list[Image.Image]
    trainer: Trainer[ConceptResidual]
    started: float
    record: RunRecord
    given: dict[str, Any]

    @classmethod
    def start(cls, request: TrainRequest, model: EmbeddedModel | None) -> _Run:
        """Read everything the request names; bad input shows before the model is loaded where it can.

        Raises:
            InfusionError: bad input, or a state to resume from that was given other input.
        """
        started = time.monotonic()
        find_photos(request.images)
        first = load_concept(request.start) if request.start else None
        given = given_before_loading(request.word, request.templates, request.settings, request.start)
        state = _former(request) if request.resume else None
        if state:
            require_same(state.told["given"], given)
        model = model or load_model(request.model, config=request.config)
        photos = _load(request.images, model.resolution)
        given |= given_photos(photos) | given_model(model)
        if state:
            require_same(state.told["given"], given)
        trainer = trainer_for(model, photos, request.word, request.settings, request.templates, first, state)
        record = RunRecord(request.settings, len(photos), model.resolution)
        if state:
            record.restore(state.told["course"])
        else:
            request.places.clear()
        return cls(request, model, photos, trainer, started, record, given)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            SystemExit: Ctrl-C or SIGTERM stopped it; what was learned is kept.
        """
        word, steps = self.request.word, self.request.settings.steps
        with Interrupt() as interrupt, progress(f"learning {word!r}", steps) as advance:
            advance(steps=self.trainer.step)
            for report in self.trainer.run():
                self.record.add(report)
                advance(note=f"loss {report.loss:.4f}")
                if report.validation_loss is not None:
                    self.snapshot()
                if interrupt.asked:
                    break
        if self.trainer.step < steps:
            say(f"Stopped at step {self.trainer.step}. A usable concept is in {self.snapshot()}")
            say("Give the same command with --resume to go on.")
            sys.exit(interrupt.exit_code)

    def snapshot(self) -> Path:
        """Write the concept as learned so far, and then the state to go on from: one file, so that all of it fits."""
        step = self.trainer.step
        path = self.request.places.snapshot(step)
        save_concept(path, self.concept(), self.request.storage)
        self.record.wrote(step, str(path))
        told = {"given": self.given, "course": self.record.course()}
        save_state(self.request.places.state, replace(self.trainer.state(), told=told))
        return path

    def concept(self) -> ConceptResidual:
        """The concept as learned so far, with what its file tells."""
        learned, step = self.trainer.learned(), self.trainer.step
        return self.record.described(learned, step, self.request.out.stem, thumbnail(self.photos[0]))

    def report(self, concept: ConceptResidual, size: int) -> dict[str, Any]:
        """The report of the finished run; `size` is the concept file's, bytes."""
        return {
            **dict.fromkeys(FIGURES),
            "model": self.model.name,
            "word": self.request.word,
            "images": len(self.photos),
            "settings": asdict(self.request.settings),
            **self.record.course(),
            "concept_file": str(self.request.out),
            "concept_file_bytes": size,
            "parameters": concept.parameter_count,
            "seconds": time.monotonic() - self.started,
            "peak_rss_mb": peak_rss_mb(),
        }


def _load(folder: Path, edge: int) -> list[Image.Image]:
    """The photos of a folder, as large as training needs them; what is skipped is said."""
    skipped: list[Skipped] = []
    photos = load_photos(folder, edge, skipped)
    for file in by_name(skipped):
        say(f"Skipped {file}")
    return photos


def _former(request: TrainRequest) -> TrainState:
    """The state of the run to go on with.

    Raises:
        InfusionError: there is none, or no such command wrote it.
    """
    path = request.places.state
    if not path.exists():
        raise InfusionError(f"nothing to resume: there is no {path}; leave --resume out")
    state = load_state(path)
    if state.told.keys() != {"given", "course"} or len(state.told["course"]["losses"]) != state.step:
        raise InfusionError(f"{path} is not the state of a run of infusion train; leave --resume out to start afresh")
    return state
