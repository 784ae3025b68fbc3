"""What the node Infusion Train Many does: a concept from each of many folders, several in one run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..infusion_core.atomic import check_writable, write_atomic
from ..infusion_core.attention import Plan
from ..infusion_core.captions import word_of
from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.noise import seeded
from ..infusion_core.residual_file import load_concept, save_concept
from ..infusion_core.residuals import ConceptResidual
from ..infusion_core.training.joint import JointObjective, joint_trainer
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.residual import ResidualObjective, ResidualSettings
from . import library, photo_files
from .clock import Clock
from .encoding import Encoding
from .folders import Subject
from .host.denoiser import HostDenoiser, encode_caption, encode_captions, training
from .host.page import tell
from .pictures import thumbnail_of
from .resuming import Given, hash_of
from .room import make_room
from .sockets import Stack
from .widgets import captions_of

TRAINED, THERE, FAILED = "trained", "already there", "failed"
REPORT = ".report.json"  # beside a concept file: what it was learned from
PROBED = (1, 4, 16, 16)  # latent that tells models apart by what they say of it
_STOPPED = comfy.model_management.InterruptProcessingException


@dataclass(frozen=True)
class Asked:
    """What the node was asked for.

    Attributes:
        model, clip, vae: the host's.
        settings: of every concept.
        word: class word of folders that do not say theirs; empty for their names.
        resolution: edge of the photos, px.
        together: concepts that share a run at most.
        out: folder of the concept files.
        checkpointing, flip: as of Infusion Train.
    """

    model: Any
    clip: Any
    vae: Any
    settings: ResidualSettings
    word: str
    resolution: int
    together: int
    out: Path
    checkpointing: bool
    flip: bool


@dataclass
class Entry:
    """A concept that is to be there in the end.

    Attributes:
        subject: its folder.
        file: of the concept.
        word: class word.
        squares: photos (N, edge, edge, 3).
        captions: all that are said.
        said: which of them of each photo, see `captions_of`.
        given: what decides what is learned.
        became: what came of it; empty before.
        why: it failed.
        concept: what was learned.
    """

    subject: Subject
    file: Path
    word: str = ""
    squares: Tensor = field(default_factory=lambda: torch.empty(0))
    captions: Sequence[str] = ()
    said: Any = None
    given: Given | None = None
    became: str = ""
    why: str = ""
    concept: ConceptResidual | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What fails in the block is this concept's alone; the user's interrupt is not."""
        try:
            yield
        except _STOPPED:
            raise
        except Exception as error:
            self.became, self.why = FAILED, str(error) or type(error).__name__
            if not isinstance(error, InfusionError):
                logging.exception("Infusion: %s", self.subject.name)

    @property
    def report(self) -> Path:
        """Beside the concept file."""
        return self.file.with_suffix(REPORT)

    def line(self) -> str:
        """For the user."""
        word = f" ({self.word})" if self.word else ""
        return f"{self.subject.name}{word}: {self.became}{': ' if self.why else ''}{self.why}"

    def look(self, asked: Asked, probes: Sequence[float]) -> None:
        """Read the folder; a concept that was learned from the same is taken from its file.

        Raises:
            InfusionError: the folder cannot be used, or the concept's name is taken.
        """
        if self.subject.why:
            raise InfusionError(self.subject.why)
        self.word = word_of(self.subject.folder, asked.word)
        taken = photo_files.take(self.subject.files, asked.resolution, None, None, False)
        self.squares = torch.stack([square.pixels for square in taken.squares])
        lines = ["\n".join(own) for own in taken.captions]
        self.captions, self.said = captions_of(lines, len(lines), self.word, asked.flip)
        told = {
            **asked.settings.told, "node": "InfusionTrainMany", "word": self.word, "captions": list(self.captions),
            "said": self.said, "photos": hash_of(self.squares), "flip": asked.flip,
        }  # fmt: skip
        self.given = Given(json.loads(json.dumps(told)), probes)
        if not self.file.exists():
            return
        if not self.report.exists():
            raise InfusionError(f"{self.file.name} is there and not this node's; rename the folder or the file")
        if self.given.is_of(_told(self.report).get("given", {})):
            self.concept, self.became = load_concept(self.file, self.file.name), THERE


class Many:
    """One execution of the node.

    Args:
        asked: for what.
        subjects: folders of photos.

    Raises:
        InfusionError: the place of the files takes none.
    """

    def __init__(self, asked: Asked, subjects: Sequence[Subject]) -> None:
        self.asked = asked
        self.entries = [Entry(subject, asked.out / f"{subject.name}{library.SUFFIX}") for subject in subjects]
        check_writable(asked.out)
        self._bar = comfy.utils.ProgressBar(asked.settings.steps * len(subjects))

    def run(self) -> tuple[Stack, str]:
        """Learn what is not there yet; the concepts that are there in the end, and a line on each folder.

        Raises:
            InterruptProcessingException: the user stopped it; concepts that were done are files.
        """
        with training(self.asked.model, self.asked.checkpointing) as denoiser:
            probes = _probes(denoiser, self.asked.clip)
            for entry in self.entries:
                with entry.kept():
                    entry.look(self.asked, probes)
            todo = [entry for entry in self.entries if not entry.became]
            for first in range(0, len(todo), self.asked.together):
                self._learn(denoiser, todo[first : first + self.asked.together])
        stack = tuple(LoadedConcept(entry.file.stem, entry.concept) for entry in self.entries if entry.concept)
        return stack, "\n".join(entry.line() for entry in self.entries)

    def _learn(self, denoiser: HostDenoiser, pack: Sequence[Entry]) -> None:
        """Learn concepts in one run; if that fails, each in its own, and whose fault it was shows."""
        try:
            self._together(denoiser, pack)
        except _STOPPED:
            raise
        except Exception as error:
            logging.warning("Infusion: %s; each of %d alone now", error, len(pack))
            for entry in pack:
                if not entry.became:
                    with entry.kept():
                        self._together(denoiser, [entry], alone=True)

    def _together(self, denoiser: HostDenoiser, pack: Sequence[Entry], alone: bool = False) -> None:
        members = dict[int, tuple[Entry, ResidualObjective]]()
        for number, entry in enumerate(pack):
            if alone:
                members[number] = entry, self._objective(denoiser, entry)
                continue
            with entry.kept():
                members[number] = entry, self._objective(denoiser, entry)
        if not members:
            return
        started, trainer = time.monotonic(), joint_trainer([objective for _, objective in members.values()])
        joint = trainer.objective
        assert isinstance(joint, JointObjective)
        make_room(denoiser, trainer)
        learning = [entry for entry, _ in members.values()]
        records = [RunRecord(self.asked.settings, len(entry.squares), self.asked.resolution) for entry in learning]
        clock, done = Clock(0), self.asked.settings.steps * sum(bool(entry.became) for entry in self.entries)
        for report in trainer.run():
            for record, own in zip(records, joint.reports(report), strict=True):
                record.add(own)
            self._bar.update_absolute(done + report.step * len(learning))
            if clock.due(report):
                tell(f"{self._names(learning)}: {clock.told(report)}")
            comfy.model_management.throw_exception_if_processing_interrupted()
        for entry, record, concept in zip(learning, records, trainer.learned(), strict=True):
            self._save(entry, record, concept, time.monotonic() - started)

    def _names(self, learning: Sequence[Entry]) -> str:
        done = sum(bool(entry.became) for entry in self.entries)
        names = ", ".join(entry.subject.name for entry in learning)
        return f"{names} ({done + len(learning)} of {len(self.entries)})"

    def _objective(self, denoiser: HostDenoiser, entry: Entry) -> ResidualObjective:
        asked = self.asked
        with torch.inference_mode():
            latents, _ = Encoding(asked.model, asked.vae).photos(
                entry.squares, None, asked.settings.restraint, asked.settings.seed, asked.flip
            )
        latents = latents.clone().to(denoiser.device, torch.float32)
        prompts = encode_captions(asked.model, asked.clip, entry.captions, entry.word, latents[:, 0])
        return ResidualObjective(denoiser, latents, prompts, entry.word, asked.settings, said=entry.said)

    def _save(self, entry: Entry, record: RunRecord, concept: ConceptResidual, seconds: float) -> None:
        assert entry.given is not None
        described = record.described(concept, len(record.losses), entry.subject.name, thumbnail_of(entry.squares))
        save_concept(entry.file, described)
        told = {"given": asdict(entry.given), "word": entry.word, "seconds": seconds, **record.course()}
        write_atomic(entry.report, json.dumps(told, indent=2).encode())
        entry.concept, entry.became = described, TRAINED


@torch.no_grad()
def _probes(denoiser: HostDenoiser, clip: Any) -> list[float]:
    """What a network and its text encoder say of fixed noise; it tells models and LoRAs apart."""
    noise = torch.randn(PROBED, generator=seeded(0)).to(denoiser.device)
    conditioning = encode_caption(denoiser.model, clip, "a photo of a cat", noise)
    sigma = denoiser.sigmas[len(denoiser.sigmas) // 2 :][:1].to(noise)
    said = denoiser.predict(noise * (1 + sigma), sigma, conditioning, Plan()).float()
    return [said.abs().mean().item(), said.square().mean().item()]


def _told(report: Path) -> Mapping[str, Any]:
    """A report; empty where it is none."""
    try:
        found = json.loads(report.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
