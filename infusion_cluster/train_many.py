"""What the command `train-many` does: every job of a manifest, once."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from infusion_cli.console import progress, say, say_table
from infusion_cli.output import write_report
from infusion_core.atomic import check_writable, write_atomic
from infusion_core.captions import WORD_FILE
from infusion_core.embedded.photos import find_photos
from infusion_core.embedded.subject import load_subject
from infusion_core.errors import InfusionError
from infusion_core.photos import Skipped, by_name
from infusion_core.residual_file import Storage

from .manifest import OUT, PHOTOS, Defaults, Job, read_manifest
from .worker import Outcome, Task, stamped

LOGS = "logs"
GIVEN = "given"  # of a concept's report: what decided what it is
TRAINED, FAILED, DONE = "trained", "failed", "already there"


@dataclass(frozen=True)
class ManyRequest:
    """What `infusion train-many` was asked for.

    Attributes:
        manifest: see `read_manifest`.
        defaults: what its entries do not say.
        model, config: the base model.
        workers: how many; 0 for one per GPU.
        together: concepts of one run at most.
        address: of a Ray cluster; empty for this machine.
        storage: of the concepts' numbers.
    """

    manifest: Path
    defaults: Defaults
    model: str
    config: Path | None = None
    workers: int = 0
    together: int = 8
    address: str = ""
    storage: Storage = "fp16"


@dataclass
class _Row:
    """A line of the summary."""

    name: str
    word: str
    out: str
    became: str
    why: str = ""
    told: dict[str, Any] = field(default_factory=dict)


def run_many(request: ManyRequest) -> dict[str, Any]:
    """Learn every concept of a manifest that is not there yet; write a log for each, and report.json.

    Returns:
        the report.

    Raises:
        InfusionError: the manifest, the cluster or the model cannot be used; or the disk is full.
        SystemExit: jobs failed, code 1; the others are done.
    """
    started, out = time.monotonic(), request.defaults.out
    jobs, refused = read_manifest(request.manifest, request.defaults)
    for folder in (out, out / LOGS):
        check_writable(folder)
    run = _Run(request, [_Row(r.name, "", "", FAILED, r.why) for r in refused])
    todo = [job for job in jobs if run.is_new(job)]
    if todo:
        run.train(todo)
    run.rows.sort(key=lambda row: row.name)
    counts = Counter(row.became for row in run.rows)
    report = {"model": request.model, "jobs": [asdict(row) for row in run.rows], "counts": dict(counts),
              "seconds": time.monotonic() - started}  # fmt: skip
    write_report(out / "report.json", report)
    say_table("Concepts", ("", "steps", "seconds", "validation loss"), [_line(row) for row in run.rows])
    for row in run.rows:
        if row.became == FAILED:
            say(f"{row.name} failed: {row.why}")
    say(f"{', '.join(f'{n} {what}' for what, n in counts.items())}; {out / 'report.json'} and {out / LOGS} tell more")
    if counts[FAILED]:
        raise SystemExit(1)
    return report


class _Run:
    """One run of the command.

    Attributes:
        rows: of the summary, so far.
    """

    def __init__(self, request: ManyRequest, rows: list[_Row]) -> None:
        self.request, self.rows = request, rows
        self._given: dict[str, dict[str, Any]] = {}

    def is_new(self, job: Job) -> bool:
        """Whether a job is to be done; one that cannot be, or whose file is there, of the same input, has its row."""
        try:
            given = self._given[job.name] = self.given(job)
        except (InfusionError, OSError) as error:
            self._ended(job, Outcome(job.name, why=str(error)))
            return False
        there, told = job.out.exists(), _given_before(job)
        if there and told is None:
            why = f"{job.out} is there and no train-many wrote it; move it away, or give the job another {OUT!r}"
            self._ended(job, Outcome(job.name, why=why))
            return False
        if not there or told != given:
            return True
        self.rows.append(_Row(job.name, job.word, str(job.out), DONE))
        return False

    def given(self, job: Job) -> dict[str, Any]:
        """What decides what a job learns, as JSON has it.

        Raises:
            InfusionError: its folder holds no photo.
        """
        files = [path for path in find_photos(job.photos, PHOTOS) if path.is_file()]
        photos = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        told = {**job.settings.told, "word": job.word, "template": list(job.templates), "photos": photos}
        return {**told, "model": self.request.model, "storage": self.request.storage}

    def train(self, jobs: Sequence[Job]) -> None:
        """Learn jobs, in packs."""
        from .pool import workers  # Ray takes its time, and a run with nothing to do needs none

        by_name = {job.name: job for job in jobs}
        request, steps = self.request, sum(job.settings.steps for job in jobs)
        with (
            workers(request.model, request.config, request.workers, request.address) as pool,
            progress("learning", steps) as advance,
        ):
            edge, bar = pool.resolution, _Bar(advance)
            packs = (self._loaded(pack, edge, bar) for pack in packed(jobs, request.together))
            for outcomes in pool.run((pack for pack in packs if pack), self._begun, bar.at):
                for outcome in outcomes:
                    job = by_name[outcome.name]
                    self._ended(job, outcome)
                    bar.done(job.settings.steps, f"{job.name}: {self.rows[-1].became}")

    def _loaded(self, pack: Sequence[Job], edge: int, bar: _Bar) -> list[Task]:
        """A pack with its photos; jobs without any fail."""
        tasks = []
        for job in pack:
            skipped: list[Skipped] = []
            try:
                photos = load_subject(job.photos, edge, skipped)
            except InfusionError as error:
                self._ended(job, Outcome(job.name, why=str(error)))
                bar.done(job.settings.steps, f"{job.name}: {FAILED}")
                continue
            self._log(job.name, [f"skipped {file}" for file in by_name(skipped) if file.name != WORD_FILE])
            self._log(job.name, [f"transparency masks {name}" for name in photos.cut_out])
            tasks.append(
                Task(job.name, job.out.stem, job.word, photos, job.settings, job.templates, self.request.storage)
            )
        return tasks

    def _begun(self, pack: Sequence[Task], who: str) -> None:
        for task in pack:
            self._log(task.name, [stamped(f"given to {who}, with {len(pack) - 1} others")])

    def _ended(self, job: Job, outcome: Outcome) -> None:
        """Write what a job came to."""
        self._log(job.name, outcome.log)
        told: dict[str, Any] = {k: v for k, v in outcome.told.items() if k in ("validation", "seconds")}
        row = _Row(job.name, job.word, str(job.out), TRAINED if outcome.data else FAILED, outcome.why, told)
        try:
            if outcome.data:
                self._write(job, outcome.data, outcome.told)
        except InfusionError as error:
            row.became, row.why = FAILED, str(error)
        self.rows.append(row)

    def _write(self, job: Job, data: bytes, told: dict[str, Any]) -> None:
        """Write a concept, and then its report; before it one that is there says whose the file is."""
        report = _report_of(job)
        if _given_before(job) is None:
            write_report(report, {GIVEN: {}})
        write_atomic(job.out, data)
        write_report(report, {GIVEN: self._given[job.name], "word": job.word, **told})

    def _log(self, name: str, lines: Sequence[str]) -> None:
        path = self.request.defaults.out / LOGS / f"{name}.log"
        before = path.read_bytes() if path.exists() else b""
        write_atomic(path, before + "".join(f"{line.rstrip()}\n" for line in lines).encode())


class _Bar:
    """Steps of packs that are done, and of those that are not yet."""

    def __init__(self, advance: Any) -> None:
        self._advance, self._done, self._shown, self._note = advance, 0, 0, ""

    def at(self, steps: int) -> None:
        """So many steps are done of packs that are at work."""
        self._show(self._done + steps)

    def done(self, steps: int, note: str) -> None:
        """A job has ended."""
        self._done, self._note = self._done + steps, note
        self._show(max(self._shown, self._done))

    def _show(self, steps: int) -> None:
        self._advance(note=self._note, steps=steps - self._shown)
        self._shown = steps


def packed(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """Jobs of the same settings, so many at a time."""

    def key(job: Job) -> str:
        return json.dumps([job.settings.told, job.settings.snapshot_every, job.templates])

    for _, alike in groupby(sorted(jobs, key=key), key):
        of_one = list(alike)
        yield from (of_one[first : first + most] for first in range(0, len(of_one), most))


def _report_of(job: Job) -> Path:
    return job.out.with_suffix(".report.json")


def _given_before(job: Job) -> Any:
    """What decided what the concept there is, as its report has it; None where no run of this command wrote one."""
    try:
        told = json.loads(_report_of(job).read_text())
    except (OSError, ValueError):
        return None
    return told.get(GIVEN) if isinstance(told, dict) else None


def _line(row: _Row) -> list[str]:
    if row.became != TRAINED:
        return [f"{row.name}: {row.became}", "", "", ""]
    step, loss = row.told["validation"][-1]
    return [row.name, str(step), f"{row.told['seconds']:.0f}", f"{loss:.4f}"]
