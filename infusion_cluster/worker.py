"""What one worker does with a pack of concepts: all of them in one run. Knows nothing of Ray or of disks."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.photos import thumbnail
from infusion_core.embedded.subject import SubjectPhotos
from infusion_core.embedded.tasks import trainer_for
from infusion_core.errors import InfusionError
from infusion_core.residual_file import Storage, concept_bytes
from infusion_core.residuals import ConceptResidual
from infusion_core.training.engine import StepReport
from infusion_core.training.joint import JointObjective, joint_trainer
from infusion_core.training.record import RunRecord
from infusion_core.training.residual import ResidualObjective, ResidualSettings


@dataclass(frozen=True)
class Task:
    """A job with its photos in memory.

    Attributes:
        name: of the job.
        title: of the concept.
        word: class word.
        photos: of the subject.
        settings: how to train.
        templates: captions with ``{}`` for the word.
        storage: of the concept's numbers.
    """

    name: str
    title: str
    word: str
    photos: SubjectPhotos
    settings: ResidualSettings
    templates: tuple[str, ...]
    storage: Storage = "fp16"


@dataclass
class Outcome:
    """What became of a task.

    Attributes:
        name: of the job.
        data: the concept file; None where it failed.
        told: the run's course, for a report.
        why: it failed.
        log: lines.
    """

    name: str
    data: bytes | None = None
    told: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    log: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Add a line to the log."""
        self.log.append(stamped(line))


def train_pack(model: EmbeddedModel, pack: Sequence[Task], at: Callable[[int], None]) -> list[Outcome]:
    """Learn the concepts of a pack, all in one run; one that cannot be learned does not keep the others from it.

    Args:
        model: the frozen base.
        pack: tasks of the same settings.
        at: called with the number of steps that are done.
    """
    outcomes = {task.name: Outcome(task.name) for task in pack}
    members: list[Member] = []
    for task in pack:
        outcome = outcomes[task.name]
        outcome.say(f"{len(task.photos.pictures)} photos of {task.word!r}, {whoami()}")
        with _kept(outcome):
            members.append(Member.of(model, task, outcome))
    try:
        _learn(members, at)
    except Exception as error:
        for member in members:  # whose fault it was shows when each is alone
            member.outcome.say(f"with {len(members) - 1} others: {error}; alone now")
            with _kept(member.outcome):
                _learn([Member.of(model, member.task, member.outcome)], at)
    return list(outcomes.values())


def stamped(line: str) -> str:
    """A line of a log, with the time."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"


def whoami() -> str:
    """This process, for logs."""
    return f"worker {os.getpid()} on {socket.gethostname()}"


@dataclass
class Member:
    """A task that is being learned."""

    task: Task
    objective: ResidualObjective
    record: RunRecord
    outcome: Outcome

    @classmethod
    def of(cls, model: EmbeddedModel, task: Task, outcome: Outcome) -> Member:
        """A task before its first step.

        Raises:
            InfusionError: it cannot be learned.
        """
        objective = trainer_for(model, task.photos, task.word, task.settings, task.templates).objective
        assert isinstance(objective, ResidualObjective)
        return cls(task, objective, RunRecord(task.settings, len(task.photos.pictures), model.resolution), outcome)

    def took(self, report: StepReport) -> None:
        """Note a step."""
        self.record.add(report)
        if report.validation_loss is not None:
            self.outcome.say(f"step {report.step}: loss {report.loss:.4f}, validation {report.validation_loss:.4f}")

    def ended(self, concept: ConceptResidual, seconds: float) -> None:
        """Take what was learned."""
        steps, picture = len(self.record.losses), thumbnail(self.task.photos.pictures[0])
        described = self.record.described(concept, steps, self.task.title, picture)
        self.outcome.data = concept_bytes(described, self.task.storage)
        self.outcome.told = {**self.record.course(), "parameters": concept.parameter_count, "seconds": seconds}


def _learn(members: Sequence[Member], at: Callable[[int], None]) -> None:
    """Learn concepts in one run."""
    if not members:
        return
    started, trainer = time.monotonic(), joint_trainer([member.objective for member in members])
    joint = trainer.objective
    assert isinstance(joint, JointObjective)
    for report in trainer.run():
        for member, own in zip(members, joint.reports(report), strict=True):
            member.took(own)
        at(report.step)
    for member, concept in zip(members, trainer.learned(), strict=True):
        member.ended(concept, time.monotonic() - started)


@contextmanager
def _kept(outcome: Outcome) -> Iterator[None]:
    """What fails in the block is the outcome's, with a traceback in its log unless the user can put it right."""
    try:
        yield
    except Exception as error:
        outcome.why = str(error) or type(error).__name__
        outcome.say(outcome.why)
        if not isinstance(error, InfusionError):
            outcome.log += traceback.format_exception(error)
