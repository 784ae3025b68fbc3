"""What the command `train` does, apart from reading its options."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.captions import CAPTION_TEMPLATES
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.photos import load_photos, thumbnail
from infusion_core.embedded.sampling import ALWAYS, NEVER, Window
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.residual_file import Storage, load_concept, load_state, save_concept, save_state
from infusion_core.residuals import ConceptResidual
from infusion_core.trainer import Trainer, TrainSettings

from .console import INTERRUPTED, Interrupt, progress, say
from .output import peak_rss_mb, write_report
from .scoring import FIGURES, score_on_tinyworld


@dataclass(frozen=True)
class TrainRequest:
    """What `infusion train` was asked for."""

    model: str
    images: Path
    word: str
    out: Path
    settings: TrainSettings
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
    def told(self) -> dict[str, Any]:
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
        say(f"Stopped at step {run.trainer.step}. A usable concept is in {run.snapshot(None)}")
        say("Give the same command with --resume to go on.")
        sys.exit(INTERRUPTED)
    concept = run.concept(run.snapshots[-1]["validation_loss"] if run.snapshots else None)
    size = save_concept(request.out, concept, request.storage)
    report = run.report(concept, size)
    write_report(request.out.with_name("report.json"), report)
    if score and run.model.name == "tinyworld":
        report.update(score_on_tinyworld(run.model, run.photos, concept, run.replacement))
        write_report(request.out.with_name("report.json"), report)
    say(f"Wrote {request.out} ({size:,} bytes) and report.json beside it")
    return Trained(concept, report, run.photos)


@dataclass
class _Run:
    """One run of the command: what it works with, and what it has left so far."""

    request: TrainRequest
    model: EmbeddedModel
    photos: list[Image.Image]
    trainer: Trainer
    started: float
    losses: list[float] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, request: TrainRequest, model: EmbeddedModel | None) -> _Run:
        """Read everything the request names; bad input shows before the model is loaded where it can.

        Raises:
            InfusionError: bad input.
        """
        started = time.monotonic()
        if request.out.suffix != ".safetensors":
            raise InfusionError(f"--out names the concept file and must end in .safetensors, got {request.out}")
        photos = load_photos(request.images)
        first = load_concept(request.start) if request.start else None
        if request.resume and not request.state.is_file():
            raise InfusionError(f"nothing to resume: there is no {request.state}; leave --resume out")
        state = load_state(request.state) if request.resume else None
        before = json.loads(request.history.read_text()) if request.resume and request.history.is_file() else None
        if before:
            _require_same(before.get("settings", {}), request.told)
        model = model or load_model(request.model, config=request.config)
        trainer = trainer_for(model, photos, request.word, request.settings, request.templates, first, state)
        run = cls(request, model, photos, trainer, started)
        if before:
            run.losses, run.snapshots = before["losses"], before["snapshots"]
        return run

    def train(self) -> None:
        """Train to the last step, or to the step at which Ctrl-C was pressed."""
        word, steps = self.request.word, self.request.settings.steps
        with Interrupt() as interrupt, progress(f"learning {word!r}", steps) as advance:
            advance(steps=self.trainer.step)
            for report in self.trainer.run():
                self.losses.append(report.loss)
                advance(note=f"loss {report.loss:.4f}")
                if report.validation_loss is not None:
                    self.snapshot(report.validation_loss)
                if interrupt.asked:
                    break

    def snapshot(self, validation: float | None) -> Path:
        """Write the concept as learned so far, and the state to go on from."""
        path = self.request.snapshots / f"step-{self.trainer.step:05d}.safetensors"
        save_concept(path, self.concept(validation), self.request.storage)
        save_state(self.request.state, self.trainer.state())
        self.snapshots.append({"step": self.trainer.step, "validation_loss": validation, "file": str(path)})
        history = {"settings": self.request.told, "losses": self.losses, "snapshots": self.snapshots}
        write_report(self.request.history, history)
        return path

    def concept(self, validation: float | None) -> ConceptResidual:
        """The concept as learned so far, with its settings and a thumbnail for the file."""
        settings, resolution = self.request.settings, self.model.resolution
        training = {
            "steps": str(self.trainer.step),
            "lr": f"{settings.learning_rate:g}",
            "batch": str(settings.batch_size * settings.accumulation),
            "images": str(len(self.photos)),
            "seed": str(settings.seed),
            "resolution": f"{resolution}x{resolution}",
            "title": self.request.out.stem,
        }
        if validation is not None:
            training["validation_loss"] = f"{validation:.5f}"
        return replace(self.trainer.concept(), training=training, thumbnail=thumbnail(self.photos[0]))

    @property
    def replacement(self) -> Window:
        """When to replace maps in sampling: as in training."""
        return ALWAYS if self.request.settings.replace_maps else NEVER

    def report(self, concept: ConceptResidual, size: int) -> dict[str, Any]:
        """The report of the finished run; `size` is the concept file's, bytes."""
        return {
            **dict.fromkeys(FIGURES),
            "model": self.model.name,
            "word": self.request.word,
            "images": len(self.photos),
            "settings": asdict(self.request.settings),
            "losses": self.losses,
            "snapshots": self.snapshots,
            "concept_file": str(self.request.out),
            "concept_file_bytes": size,
            "parameters": concept.parameter_count,
            "seconds": time.monotonic() - self.started,
            "peak_rss_mb": peak_rss_mb(),
        }


def _require_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [f"{name.replace('_', '-')} was {value}" for name, value in before.items() if value != now.get(name)]
    if changed:
        raise InfusionError(
            f"--resume goes on with the settings of the interrupted run, but {' and '.join(changed)}; give the same "
            "settings again, or leave --resume out to train from the start"
        )
