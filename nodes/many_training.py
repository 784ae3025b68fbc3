"""What the node Infusion Train Many does: a concept from each of many folders, several in one run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ..infusion_core.atomic import check_writable, write_atomic
from ..infusion_core.attention import Plan
from ..infusion_core.captions import word_of
from ..infusion_core.concepts import LoadedConcept
from ..infusion_core.errors import InfusionError
from ..infusion_core.noise import seeded
from ..infusion_core.residual_file import load_concept, save_concept
from ..infusion_core.residuals import ConceptResidual
from ..infusion_core.tensor_file import SUFFIX
from ..infusion_core.training.clock import Clock
from ..infusion_core.training.engine import Trainer
from ..infusion_core.training.joint import JointObjective, joint_trainer
from ..infusion_core.training.record import RunRecord
from ..infusion_core.training.residual import ResidualObjective, ResidualSettings
from . import library, photo_files
from .encoding import Encoding
from .folders import Subject
from .host.denoiser import HostDenoiser, encode_caption, encode_captions, training
from .host.page import tell
from .pictures import thumbnail_of
from .resuming import Given
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
        given: what decides what is learned.
        became: what came of it; empty before.
        why: it failed.
        concept: what was learned.
    """

    subject: Subject
    file: Path
    word: str = ""
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
        """See what is in the folder; a concept that was learned from the same is taken from its file.

        Raises:
            InfusionError: the folder cannot be used, or the concept's name is taken.
        """
        if self.subject.why:
            raise InfusionError(self.subject.why)
        self.word = word_of(self.subject.folder, asked.word)
        told = {
            **asked.settings.told, "word": self.word, "resolution": asked.resolution, "flip": asked.flip,
            "photos": photo_files.fingerprint(self.subject.files),
        }  # fmt: skip
        self.given = Given(json.loads(json.dumps(told)), probes)
        if library.is_hidden(self.file):
            raise InfusionError(
                f"another model folder has {self.file.relative_to(library.output().resolve())}, which loaders would "
                "open instead; rename the folder of photos, or write another folder into save_in"
            )
        if not self.file.exists():
            return
        kept = _given(self.report)
        if kept is None:
            raise InfusionError(f"{self.file.name} is there and not this node's; rename the folder or the file")
        if not self.given.is_on(kept):
            raise InfusionError(f"{self.file.name} was learned on another model; write another folder into save_in")
        if self.given.is_of(kept):
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
        self.entries = [Entry(subject, asked.out / f"{subject.name}{SUFFIX}") for subject in subjects]
        check_writable(asked.out)
        self._room_for = 0
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
            return
        except _STOPPED:
            raise
        except Exception as error:  # it holds the run that failed, and all that this one kept, to the end of the block
            why = str(error)
        comfy.model_management.soft_empty_cache()
        logging.warning("Infusion: %s; each of %d alone now", why, len(pack))
        for entry in pack:
            if not entry.became:
                with entry.kept():
                    self._together(denoiser, [entry], alone=True)

    def _together(self, denoiser: HostDenoiser, pack: Sequence[Entry], alone: bool = False) -> None:
        members = list[_Member]()
        for entry in pack:
            with nullcontext() if alone else entry.kept():
                members.append(self._member(denoiser, entry))
        if not members:
            return
        trainer = joint_trainer([member.objective for member in members])
        joint = trainer.objective
        assert isinstance(joint, JointObjective)
        self._make_room(denoiser, trainer, len(members))
        clock, done = Clock(0), self.asked.settings.steps * self._done
        for report in trainer.run():
            for member, own in zip(members, joint.reports(report), strict=True):
                member.record.add(own)
            self._bar.update_absolute(done + report.step * len(members))
            if clock.due(report):
                names = ", ".join(member.entry.subject.name for member in members)
                tell(f"{names} ({self._done + len(members)} of {len(self.entries)}): {clock.told(report)}")
            comfy.model_management.throw_exception_if_processing_interrupted()
        for member, concept in zip(members, trainer.learned(), strict=True):
            member.save(concept)

    @property
    def _done(self) -> int:
        return sum(bool(entry.became) for entry in self.entries)

    def _make_room(self, denoiser: HostDenoiser, trainer: Trainer[Any], members: int) -> None:
        """As `make_room`, which is asked again only where another number of concepts share the run."""
        if members == self._room_for:
            denoiser.load()
            return
        make_room(denoiser, trainer)
        self._room_for = members

    def _member(self, denoiser: HostDenoiser, entry: Entry) -> _Member:
        asked, settings = self.asked, self.asked.settings
        try:
            taken = photo_files.take(entry.subject.files, asked.resolution, None, None, photo_files.CENTER)
        except InfusionError as error:
            entry.subject = replace(entry.subject, why=str(error))
            raise
        squares = torch.stack([square.pixels for square in taken.squares])
        masks = [square.mask[None] for square in taken.squares] if taken.cut_out else None
        lines = ["\n".join(own) for own in taken.captions]
        captions, said = captions_of(lines, len(lines), entry.word, asked.flip)
        with torch.inference_mode():
            encode = Encoding(asked.model, asked.vae)
            latents, weights = encode.photos(squares, masks, settings.restraint, settings.seed, asked.flip)
        latents = latents.clone().to(denoiser.device, torch.float32)
        weights = None if weights is None else weights.clone().to(latents)
        prompts = encode_captions(asked.model, asked.clip, captions, entry.word, latents[:, 0])
        objective = ResidualObjective(denoiser, latents, prompts, entry.word, settings, masks=weights, said=said)
        record = RunRecord(settings, len(squares), asked.resolution)
        return _Member(entry, objective, record, thumbnail_of(squares))


@dataclass
class _Member:
    """A concept that is being learned."""

    entry: Entry
    objective: ResidualObjective
    record: RunRecord
    thumbnail: bytes
    started: float = field(default_factory=time.monotonic)

    def save(self, concept: ConceptResidual) -> None:
        """Write what was learned, and what it was learned from."""
        entry = self.entry
        assert entry.given is not None
        described = self.record.described(concept, len(self.record.losses), entry.subject.name, self.thumbnail)
        save_concept(entry.file, described)
        told = {"given": asdict(entry.given), "word": entry.word, "seconds": time.monotonic() - self.started}
        write_atomic(entry.report, json.dumps({**told, **self.record.course()}, indent=2).encode())
        entry.concept, entry.became = described, TRAINED


@torch.no_grad()
def _probes(denoiser: HostDenoiser, clip: Any) -> list[float]:
    """What a network and its text encoder say of fixed noise; it tells models and LoRAs apart."""
    noise = torch.randn(PROBED, generator=seeded(0)).to(denoiser.device)
    conditioning = encode_caption(denoiser.model, clip, "a photo of a cat", noise)
    sigma = denoiser.sigmas[len(denoiser.sigmas) // 2 :][:1].to(noise)
    said = denoiser.predict(noise * (1 + sigma), sigma, conditioning, Plan()).float()
    return [said.abs().mean().item(), said.square().mean().item()]


def _given(report: Path) -> Mapping[str, Any] | None:
    """What a concept of this node was given, by its report; None where it is no such report."""
    try:
        found = json.loads(report.read_text())["given"]
        return {"told": found["told"], "probes": [float(probe) for probe in found["probes"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
