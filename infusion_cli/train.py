"""What the command `train` does, apart from reading its options."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.markup import escape

from infusion_core.captions import CAPTION_TEMPLATES, class_word
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
from infusion_core.training.state import load_state, save_state

from .console import INTERRUPTED, Interrupt, progress, say
from .output import peak_rss_mb, write_report
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
    def snapshots(self) -> Path:
        """The folder of snapshots, beside the concept file."""
        return self.out.with_suffix(".snapshots")

    @property
    def state(self) -> Path:
        """Where the training state lies while a run is not finished."""
        return self.snapshots / "state.safetensors"

    @property
    def history(self) -> Path:
        """Losses and snapshots of the steps before `state`, and what they were trained with."""
        return self.snapshots / "history.json"

    @property
    def must_stay(self) -> dict[str, Any]:
        """What a resumed run must share with the run it goes on with; snapshots change nothing that is learned."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("snapshot_every", "validation_draws")}
        return {"word": self.word, "template": list(self.templates), **settings}


@dataclass(frozen=True)
class Trained:
    """What training left: the concept, its report so far, and the photos it saw."""

    concept: ConceptResidual
    report: dict[str, Any]
    photos: list[Image.Image]


def run_train(request: TrainRequest, model: EmbeddedModel | None = None, score: bool = True) -> Trained:
    """Train, with a progress bar, snapshots beside the concept file, and a `report.json`.

    On TinyWorld the oracle scores the concept too, unless `score` is False. Ctrl-C writes a snapshot and exits with
    code 130; ``--resume`` goes on from there.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    run = _Run.start(request, model)
    run.train()
    if run.trainer.step < request.settings.steps:
        say(f"Stopped at step {run.trainer.step}. A usable concept is in {run.snapshot()}")
        say("Give the same command with --resume to go on.")
        sys.exit(INTERRUPTED)
    concept = run.concept()
    size = save_concept(request.out, concept, request.storage)
    report = run.report(concept, size)
    write_report(request.out.with_name("report.json"), report)
    judge = JUDGES.get(run.model.name)
    if score and judge is not None:
        report.update(judge(run.model, run.photos, concept))
        write_report(request.out.with_name("report.json"), report)
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

    @classmethod
    def start(cls, request: TrainRequest, model: EmbeddedModel | None) -> _Run:
        """Read everything the request names; bad input shows before the model is loaded where it can.

        Raises:
            InfusionError: bad input.
        """
        started = time.monotonic()
        if request.out.suffix != ".safetensors":
            raise InfusionError(f"--out names the concept file and must end in .safetensors, got {request.out}")
        class_word(request.word)
        find_photos(request.images)
        first = load_concept(request.start) if request.start else None
        if request.resume and not request.state.is_file():
            raise InfusionError(f"nothing to resume: there is no {request.state}; leave --resume out")
        state = load_state(request.state) if request.resume else None
        before = json.loads(request.history.read_text()) if request.resume and request.history.is_file() else None
        if before:
            _require_same(before.get("settings", {}), request.must_stay)
        model = model or load_model(request.model, config=request.config)
        photos = _load(request.images, model.resolution)
        trainer = trainer_for(model, photos, request.word, request.settings, request.templates, first, state)
        record = RunRecord(request.settings, len(photos), model.resolution)
        if before:
            record.restore(before)
        return cls(request, model, photos, trainer, started, record)

    def train(self) -> None:
        """Train to the last step, or to the step at which Ctrl-C was pressed."""
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

    def snapshot(self) -> Path:
        """Write the concept as learned so far, and the state to go on from."""
        step = self.trainer.step
        path = self.request.snapshots / f"step-{step:05d}.safetensors"
        save_concept(path, self.concept(), self.request.storage)
        save_state(self.request.state, self.trainer.state())
        self.record.wrote(step, str(path))
        write_report(self.request.history, {"settings": self.request.must_stay, **self.record.course()})
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
        say(escape(f"Skipped {file}"))
    return photos


def _require_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{name.replace('_', '-')} was {value}" for name, value in before.items() if value != now.get(name)]
    if changed:
        raise InfusionError(
            f"--resume goes on with the settings of the interrupted run, but {' and '.join(changed)}; give the same "
            "settings again, or leave --resume out to train from the start"
        )
