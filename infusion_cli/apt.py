"""What the command ``apt`` does: train a LoRA that watches its own overfitting."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.atomic import check_writable, write_atomic, write_new
from infusion_core.captions import CAPTION_TEMPLATES, class_word, fill
from infusion_core.embedded.lora import apt_trainer
from infusion_core.embedded.metering import unsaid_of
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.photos import files_in, find_photos, load_photos, thumbnail
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import Wish, draw_each, picture_of
from infusion_core.errors import InfusionError
from infusion_core.lora import LoraSet
from infusion_core.lora_output import LoraStorage, TrainedLora, lora_bytes
from infusion_core.photos import MOST_OF_CLASS, Skipped, read_photos
from infusion_core.tensor_file import read_tensors
from infusion_core.training.apt import AptObjective, AptSettings
from infusion_core.training.gauges import lora_meter
from infusion_core.training.overfitting import checked_level
from infusion_core.training.record import RunRecord
from infusion_core.training.shapes import first_member
from infusion_core.training.stopping import Finish

from .alone import alone
from .console import progress, say
from .course import Course, former, photos_in, say_skipped
from .given import given_class, given_model, given_photos, require_same
from .live import Live, Previews, draw_quickly
from .output import peak_rss_mb, png_bytes
from .places import Places
from .room import say_footprint
from .scoring import FIGURES, JUDGES, draw_with

AT_ONCE = 8  # pictures of the class that are drawn together, and then kept
PRIOR_SEED = 500_000  # of the picture of the class that is called 00000.png


@dataclass(frozen=True)
class AptRequest:
    """What `infusion apt` was asked for.

    Attributes:
        model: base model.
        images: folder of photos.
        word: class word of the subject.
        identifier: rare word in front of it; empty for none.
        out: the LoRA file to write.
        settings: how to train.
        templates: captions with ``{}`` for the subject.
        prior: folder of pictures of the class, or None.
        prior_count: pictures that it should hold; those that are missing are drawn by the base model.
        resume: go on with an interrupted run.
        storage: of the file.
        config: of a base model that is a single file.
        stop_at: mean overfitting at which training ends; 0 for never.
        masks: folder of the photos' masks, or None.
        checkpointing: see `checkpointed`.
        flip: show each photo mirrored as well.
        previews: templates with ``{}`` for the subject, drawn while training.
        preview_every: steps between two times; None for every snapshot where there are `previews`.
        transparency: take it for a mask.
        aspect: photos keep their shape.
        finish: how the run may end, and what is kept.
    """

    model: str
    images: Path
    word: str
    identifier: str
    out: Path
    settings: AptSettings
    templates: tuple[str, ...] = CAPTION_TEMPLATES
    prior: Path | None = None
    prior_count: int = 0
    resume: bool = False
    storage: LoraStorage = "fp16"
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
        return Previews.asked(self.previews, self.preview_every, self.phrase, self.settings.snapshot_every)

    @property
    def phrase(self) -> str:
        """What captions and prompts say for the subject."""
        return f"{self.identifier} {self.word}".strip()

    @property
    def places(self) -> Places:
        """Where the run writes."""
        return Places(self.out)

    def check(self) -> None:
        """See what can be seen without reading or writing anything.

        Raises:
            InfusionError: a word, a template, the place or the pictures of the class cannot be.
        """
        class_word(self.word)
        if {*"<>"} & {*self.identifier}:
            raise InfusionError(
                f"--identifier {self.identifier!r} holds < or >, which name concepts; give a rare word such as 'sks'"
            )
        checked_level(self.stop_at, self.settings.compares)
        fill(self.templates, self.phrase)
        _ = self.drawn
        if self.prior_count and self.prior is None:
            raise InfusionError("--prior-count needs --prior, the folder where pictures of the class are kept")
        self.places.check()


def run_apt(request: AptRequest, model: EmbeddedModel | None = None) -> dict[str, Any]:
    """Train, with a progress bar, snapshots and reports beside the LoRA file; on TinyWorld the oracle scores it.

    Ctrl-C and SIGTERM write a snapshot and exit with code 130 or 143; ``--resume`` goes on from there.

    Returns:
        the report.

    Raises:
        InfusionError: bad input, another run is writing the same file, or the disk is full.
    """
    request.check()
    with alone(request.out):
        return _Run(request, model).go()


class _Run:
    """One run of the command."""

    def __init__(self, request: AptRequest, model: EmbeddedModel | None) -> None:
        self.request, self.started = request, time.monotonic()
        find_photos(request.images)
        if request.prior is not None and not request.prior_count:
            find_photos(request.prior, "--prior", MOST_OF_CLASS)
        settings = request.settings
        given = settings.told | {"phrase": request.phrase, "template": list(request.templates)}
        state = former(request.places) if request.resume else None
        if state:
            require_same(state.told["given"], given)
        self.model = model or load_model(request.model, config=request.config)
        self.model.denoiser.checkpointing = request.checkpointing
        request.drawn.check(self.model)
        photos = photos_in(request.images, self.model.resolution, request.masks, request.transparency, request.aspect)
        self.photos = list(photos.pictures)
        pictures = _prior(request, self.model)
        given |= given_photos(photos, request.flip, request.aspect) | given_class(pictures) | given_model(self.model)
        if state:
            require_same(state.told["given"], given)
        captions, of_class = (fill(request.templates, words) for words in (request.phrase, request.word))
        shown = photos.with_mirrored() if request.flip else photos
        self.trainer = apt_trainer(
            self.model, shown, captions, settings, pictures, of_class, request.phrase, state,
            request.aspect,
        )  # fmt: skip
        objective = first_member(self.trainer.objective)
        assert isinstance(objective, AptObjective)
        self.objective = objective
        unsaid = unsaid_of(self.model.text, request.word, request.phrase, request.templates[0])
        meter = lora_meter(self.trainer, objective, unsaid) if settings.validation_draws else None
        self.record = RunRecord(settings, len(self.photos), self.model.resolution, meter=meter)
        drawn = partial(draw_quickly, self.model)
        live = Live(f"learning {request.phrase!r}", request.drawn, drawn, self.record, request.places)
        self.course = Course(
            self.trainer, self.record, request.places, given, self.write, "LoRA", live, objective.measured,
            request.stop_at, request.finish,
        )  # fmt: skip
        self.course.begin(state)

    @property
    def lora(self) -> LoraSet:
        """What is trained."""
        return self.objective.lora

    def go(self) -> dict[str, Any]:
        """Train to the last step, write, and score with the LoRA still in the network."""
        request = self.request
        with self.lora.installed():
            say_footprint(self.trainer, self.model.denoiser)
            self.course.train()
            size = self.written()
            self.course.show_overfitting()
            report = self._report(size)
            request.places.write_reports(report)
            judge = JUDGES.get(self.model.name)
            if judge is not None:
                ours = draw_with(self.model)
                report.update(judge(self.model, self.photos, request.word, request.phrase, ours, self.lora.off))
                request.places.write_reports(report)
        say(f"Wrote {request.out} ({size:,} bytes) and report.json beside it; prompts say {request.phrase!r}")
        say(f"How it went: {request.places.page}")
        return report

    def written(self) -> int:
        """Write the LoRA that is kept, which is then the one in the network; returns the file's size in bytes."""
        path = self.course.taken()
        if path is None:
            return self.write(self.request.out)
        data = path.read_bytes()
        write_atomic(self.request.out, data)
        self.lora.load(read_tensors(data)[0])
        return len(data)

    def write(self, path: Path) -> int:
        """Write the LoRA as learned so far; returns the file's size in bytes."""
        step, request = self.trainer.step, self.request
        facts = self.record.facts(step, request.out.stem)
        lora = TrainedLora(
            self.trainer.learned(), self.lora.alpha, self.model.denoiser.base, request.phrase, facts,
            thumbnail(self.photos[0]),
        )  # fmt: skip
        data = lora_bytes(lora, request.storage)
        write_atomic(path, data)
        return len(data)

    def _report(self, size: int) -> dict[str, Any]:
        return {
            **dict.fromkeys(FIGURES),
            "model": self.model.name,
            "word": self.request.word,
            "phrase": self.request.phrase,
            "images": len(self.photos),
            "settings": asdict(self.request.settings),
            **self.record.course(),
            **self.course.ending(),
            "lora_file": str(self.request.out),
            "lora_file_bytes": size,
            "seconds": time.monotonic() - self.started,
            "peak_rss_mb": peak_rss_mb(),
        }


def _prior(request: AptRequest, model: EmbeddedModel) -> list[Image.Image]:
    """Pictures of the class: those of the folder, and those that the base model draws since they are missing."""
    if request.prior is None:
        return []
    if request.prior_count:
        _draw_missing(request, request.prior, model)
    skipped: list[Skipped] = []
    pictures = load_photos(request.prior, model.resolution, skipped, "--prior", MOST_OF_CLASS)
    say_skipped(skipped)
    return pictures


def _draw_missing(request: AptRequest, folder: Path, model: EmbeddedModel) -> None:
    """Draw pictures of the class under names that are free, each from the noise of its number; what is there stays."""
    there = files_in(folder, "--prior", MOST_OF_CLASS) if folder.is_dir() else []
    missing = request.prior_count - len(list(read_photos(there, [], model.resolution)))
    if missing <= 0:
        return
    check_writable(folder)
    paths = ((number, folder / f"{number:05d}.png") for number in count())
    free = list(islice(((number, path) for number, path in paths if not path.exists()), missing))
    settings = SampleSettings(model.steps, model.guidance)
    picture = picture_of(model, fill(request.templates[:1], request.word)[0])
    parts = [free[first : first + AT_ONCE] for first in range(0, missing, AT_ONCE)]
    with progress(f"drawing {request.word!r} for --prior", settings.steps * len(parts)) as advance:
        for part in parts:
            wishes = [Wish(picture, PRIOR_SEED + number) for number, _ in part]
            drawn = draw_each(model, wishes, settings, on_step=lambda _: advance())
            for (_, path), made in zip(part, drawn, strict=True):
                write_new(path, png_bytes(made))
