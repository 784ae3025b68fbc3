"""What the command ``advise`` does: which epochs of a training make the best pair for DreamBlend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infusion_core.advisor import BASE, Advice, Judged, Setup, Survey, advise, trials
from infusion_core.atomic import write_atomic
from infusion_core.captions import fill
from infusion_core.embedded.adapters import check_there, load_variant, split_strength
from infusion_core.embedded.advising import EpochArtist, Judge, Pictures
from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError
from infusion_core.grid import labelled_grid

from .console import progress, say, say_table
from .generate import sampling_of
from .judging import Judging
from .options import checked_path
from .output import check_out, peak_rss_mb, save_picture, write_report
from .pages import figure_png

Drawn = Sequence[Pictures]  # by prompt


@dataclass(frozen=True)
class AdviseRequest:
    """What `infusion advise` was asked for.

    Attributes:
        model: base model.
        epochs: see `load_variant`, in the order of their training.
        subject: what prompts say for it, as the training did: ``sks cat``.
        out: folder.
        judging: prompts and scores.
        count: pictures of each prompt.
        seed: of the first picture.
        config: of a base model that is a single file.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    model: str
    epochs: tuple[str, ...]
    subject: str
    out: Path
    judging: Judging
    count: int
    seed: int
    config: Path | None
    sampling: Mapping[str, Any]

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            InfusionError: the epochs, the subject or a prompt cannot be, or the folder cannot be written.
        """
        if len(self.epochs) < 2 or len({*self.epochs}) < len(self.epochs):
            raise InfusionError("give at least two different epoch files (--epoch), in the order of their training")
        if BASE in self.epochs:
            raise InfusionError(f"--epoch {BASE} is the model before training, which is drawn as it is; leave it out")
        for epoch in self.epochs:
            checked_path(split_strength(epoch)[0])
            check_there(epoch)
        if not self.subject.strip():
            raise InfusionError("--subject is empty; give what prompts say for it, as the training did, e.g. 'sks cat'")
        self.judging.check()
        check_out(self.out)


def run_advise(request: AdviseRequest) -> Advice:
    """Draw every epoch, then the pairs that promise most; write a grid, a curve and a report, and say which is best.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started = time.monotonic()
    request.check()
    base = load_model(request.model, config=request.config)
    judge = request.judging.by(base)
    names = _names(request.epochs)
    model_of = lru_cache(2)(lambda name: load_variant(names.get(name, BASE), base, request.config))  # of a pair
    artist = EpochArtist(model_of, request.count, request.seed, sampling_of(base, request.sampling))
    survey = Survey(artist, judge.prompts, request.subject, judge.scores, lambda: advance())
    with progress("drawing every epoch", (len(names) + 1) * len(judge.prompts)) as advance:
        alone = survey.alone(names)
    wanted, tried = list(trials(alone)) if judge.scores else [], list[Judged]()
    if wanted:
        with progress("trying pairs", len(wanted) * len(judge.prompts)) as advance:
            tried = survey.guided(wanted)
    advice = advise(alone, tried)
    _write(request, judge, [*alone, *tried], survey.pictures, advice, time.monotonic() - started)
    return advice


def _names(epochs: Sequence[str]) -> dict[str, str]:
    """What is asked for, by the shortest name that is its own, and not the base model's."""
    paths = [split_strength(epoch)[0] for epoch in epochs]
    choices = ([path.stem for path in paths], [path.name for path in paths], epochs)
    short = next(names for names in choices if len({BASE, *names}) > len(names))
    return dict(zip(short, epochs, strict=True))


def _write(
    request: AdviseRequest, judge: Judge, judged: Sequence[Judged], pictures: Mapping[Setup, Drawn], advice: Advice,
    seconds: float,
) -> None:  # fmt: skip
    header = ("", f"{judge.names[0]} score", f"{judge.names[1]} score", "collapse")
    lines = [[one.setup.title, *(_number(v) for v in (one.subject, one.prompt, one.collapse))] for one in judged]
    rows = [(one.setup.title, [shown[0] for shown in pictures[one.setup]]) for one in judged]
    grid = labelled_grid(rows, fill(judge.prompts, request.subject, "prompt"))
    save_picture(request.out / "grid.png", grid)
    write_atomic(request.out / "curve.png", figure_png(_curve(judge, [one for one in judged if not one.setup.early])))
    report = {
        "advice": asdict(advice.setup) | {"reason": advice.reason},
        "judged": [asdict(one) for one in judged],
        "scores": judge.names if judge.scores else None,
        "prompts": judge.prompts,
        "subject": request.subject,
        "epochs": request.epochs,
        "seed": request.seed,
        "seconds": seconds,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(request.out / "report.json", report)
    say_table("Epochs and pairs", header, lines)
    say(f"Draw with: {advice.setup.title} ({advice.reason})")
    say(f"Open {(request.out / 'grid.png').resolve()}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _curve(judge: Judge, alone: Sequence[Judged]) -> Figure:
    """Scores and collapse over the epochs."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 if judge.scores else 1, squeeze=False)[0]
    places, labels = range(len(alone)), [one.setup.late for one in alone]
    if judge.scores:
        for name, values in zip(judge.names, ([o.subject for o in alone], [o.prompt for o in alone]), strict=True):
            axes[0].plot(places, values, marker="o", label=name)
        axes[0].set_title("scores, higher is better")
        axes[0].legend()
    axes[-1].plot(places, [one.collapse for one in alone], marker="o", color="tab:red")
    axes[-1].set_title("attention collapse against the base")
    for one in axes:
        one.set_xticks(places, labels, rotation=30, ha="right")
        one.grid(alpha=0.3)
    return figure
