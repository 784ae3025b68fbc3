"""What the command `train` does, apart from reading its options."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.atomic import write_atomic
from infusion_core.captions import CAPTION_TEMPLATES, class_word, fill
from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.photos import find_photos, thumbnail
from infusion_core.embedded.tasks import trainer_for
from infusion_core.residual_file import Storage, load_concept, save_concept
from infusion_core.residuals import ConceptResidual
from infusion_core.training.gauges import residual_meter
from infusion_core.training.overfitting import checked_level
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualObjective, ResidualSettings
from infusion_core.training.shapes import first_member
from infusion_core.training.stopping import Finish

from .alone import alone
from .console import say
from .course import Course, former, photos_in
from .given import given_before_loading, given_model, given_photos, require_same
from .live import Live, Previews, draw_quickly
from .output import peak_rss_mb
from .places import Places
from .room import say_footprint
from .scoring import FIGURES, JUDGES, draw_with


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
    stop_at: float = 0.0
    masks: Path | None = None
    checkpointing: bool = False
    flip: bool = False
    previews: tuple[str, ...] = ()
    preview_every: int | None = None
    transparency: bool = True
    aspect: bool = False
    finish: Finish = field(default_factory=Finish)

    @property
    def drawn(self) -> Previews:
        """What is drawn while training."""
        return Previews.asked(self.previews, self.preview_every, class_word(self.word), self.settings.snapshot_every)

    @property
    def places(self) -> Places:
        """Where the run writes."""
        return Places(self.out)

    def check(self) -> None:
        """See what can be seen without reading or writing anything.

        Raises:
            InfusionError: the word, a template, a preview prompt or the place cannot be.
        """
        fill(self.templates, class_word(self.word))
        checked_level(self.stop_at, self.settings.restraint.measures)
        _ = self.drawn
        self.places.check()


@dataclass(frozen=True)
class Trained:
    """What training left: the concept, its report so far, the photos it saw, and its course."""

    concept: ConceptResidual
    report: dict[str, Any]
    photos: list[Image.Image]
    record: RunRecord


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
    say_footprint(run.course.trainer, run.model.denoiser)
    run.course.train()
    concept, size = run.written()
    run.course.show_overfitting()
    report = run.report(concept, size)
    request.places.write_reports(report)
    judge = JUDGES.get(run.model.name)
    if score and judge is not None:
        ours = draw_with(run.model, LoadedConcept(request.out.stem, concept))
        report.update(judge(run.model, run.photos, request.word, request.word, ours))
        request.places.write_reports(report)
    say(f"Wrote {request.out} ({size:,} bytes); beside it report.json and, how it went, {request.places.page.name}")
    return Trained(concept, report, run.photos, run.course.record)


@dataclass
class _Run:
    """One run of the command: what it works with, and what it has left so far."""

    request: TrainRequest
    model: EmbeddedModel
    photos: list[Image.Image]
    course: Course
    started: float

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
        state = former(request.places) if request.resume else None
        if state:
            require_same(state.told["given"], given)
        model = model or load_model(request.model, config=request.config)
        model.denoiser.checkpointing = request.checkpointing
        request.drawn.check(model, {"concept": class_word(request.word)})
        photos = photos_in(request.images, model.resolution, request.masks, request.transparency, request.aspect)
        given |= given_photos(photos, request.flip, request.aspect) | given_model(model)
        if state:
            require_same(state.told["given"], given)
        shown = photos.with_mirrored() if request.flip else photos
        trainer = trainer_for(
            model, shown, request.word, request.settings, request.templates, first, state, request.aspect
        )
        pictures = list(photos.pictures)
        objective = first_member(trainer.objective)
        assert isinstance(objective, ResidualObjective)
        meter = residual_meter(trainer, objective)
        record = RunRecord(request.settings, len(pictures), model.resolution, meter=meter)

        def write(path: Path) -> int:
            return save_concept(path, run.concept(), request.storage)

        def drawn(prompt: str, seed: int) -> Image.Image:
            return draw_quickly(model, prompt, seed, LoadedConcept(request.out.stem, trainer.learned()))

        live = Live(f"learning {request.word!r}", request.drawn, drawn, record, request.places)
        course = Course(
            trainer, record, request.places, given, write, "concept", live, objective.measured, request.stop_at,
            request.finish,
        )  # fmt: skip
        course.begin(state)
        run = cls(request, model, pictures, course, started)
        return run

    def written(self) -> tuple[ConceptResidual, int]:
        """The concept that is kept, and its file's size in bytes."""
        path, out = self.course.taken(), self.request.out
        if path is None:
            concept = self.concept()
            return concept, save_concept(out, concept, self.request.storage)
        data = path.read_bytes()
        write_atomic(out, data)
        return load_concept(out), len(data)

    def concept(self) -> ConceptResidual:
        """The concept as learned so far, with what its file tells."""
        learned, step = self.course.trainer.learned(), self.course.trainer.step
        return self.course.record.described(learned, step, self.request.out.stem, thumbnail(self.photos[0]))

    def report(self, concept: ConceptResidual, size: int) -> dict[str, Any]:
        """The report of the finished run; `size` is the concept file's, bytes."""
        return {
            **dict.fromkeys(FIGURES),
            "model": self.model.name,
            "word": self.request.word,
            "images": len(self.photos),
            "settings": asdict(self.request.settings),
            **self.course.record.course(),
            **self.course.ending(),
            "concept_file": str(self.request.out),
            "concept_file_bytes": size,
            "parameters": concept.parameter_count,
            "seconds": time.monotonic() - self.started,
            "peak_rss_mb": peak_rss_mb(),
        }
