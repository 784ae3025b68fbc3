"""What the command ``blend`` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.adapters import check_there, load_variant, split_strength
from infusion_core.embedded.blend import draw_blended
from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError
from infusion_core.grid import labelled_grid

from .console import progress, say
from .generate import MOST_PICTURES, sampling_of
from .options import checked_path
from .output import check_out, peak_rss_mb, save_picture, write_report

GRID, EARLY = "grid.png", "early"
MOST_IN_GRID = 8  # pictures of each row


@dataclass(frozen=True)
class BlendRequest:
    """What `infusion blend` was asked for.

    Attributes:
        model: base model, on which LoRA files are put.
        early, late: see `load_variant`.
        prompt: of the pictures.
        out: folder.
        alphas: one or more; each draws all pictures.
        blend: everything else that `BlendSettings` says.
        count: pictures.
        seed: of the first picture.
        negative: prompt of the unconditional half.
        config: of a base model that is a single file.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    model: str
    early: str
    late: str
    prompt: str
    out: Path
    alphas: tuple[float, ...]
    blend: BlendSettings
    count: int = 4
    seed: int = 0
    negative: str = ""
    config: Path | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            InfusionError: a number is out of range, early and late are the same, or one is not there.
        """
        if not 1 <= self.count * len(self.alphas) <= MOST_PICTURES:
            raise InfusionError(f"the pictures must be at least 1 and at most {MOST_PICTURES} in all alphas together")
        if len({*map(told, self.alphas)}) < len(self.alphas):
            raise InfusionError("an alpha is given twice, to six digits; leave one out")
        (early, early_strength), (late, late_strength) = map(split_strength, (self.early, self.late))
        for path, asked in ((early, self.early), (late, self.late)):
            checked_path(path)
            check_there(asked)
        same = early == late or (early.is_file() and late.is_file() and early.samefile(late))
        if same and early_strength == late_strength:
            raise InfusionError(
                f"early and late are both {early}, which changes nothing; give two stages of a training"
            )
        check_out(self.out)


def told(alpha: float) -> str:
    """An alpha as its folder and its row are called."""
    return f"{alpha:g}"


def run_blend(request: BlendRequest) -> None:
    """Draw pictures of the late model under the early one's guidance into a folder, with a `report.json`.

    With one alpha the pictures are in the folder, with several in a folder for each. The early model's own are in
    ``early``, and ``grid.png`` shows them above the others.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started = time.monotonic()
    request.check()
    settings = [replace(request.blend, alpha=alpha) for alpha in request.alphas]
    base = load_model(request.model, config=request.config)
    early, late = (load_variant(asked, base, request.config) for asked in (request.early, request.late))
    sampling = sampling_of(base, request.sampling)
    rows, reference = list[tuple[str, Sequence[Image.Image]]](), list[Image.Image]()
    with progress("drawing", len(settings) * sampling.steps * -(-request.count // 8)) as advance:
        for one in settings:
            pictures, references = draw_blended(
                early, late, request.prompt, request.count, request.seed, sampling, one, request.negative,
                on_step=lambda: advance(),
            )  # fmt: skip
            folder = request.out if len(settings) == 1 else request.out / f"alpha-{told(one.alpha)}"
            _save(folder, request.seed, pictures)
            if one.guides(sampling.steps - 1, sampling.steps) and not reference:
                reference = references
            rows.append((f"alpha {told(one.alpha)}", pictures))
    if reference:
        _save(request.out / EARLY, request.seed, reference)
        rows.insert(0, ("early model", reference))
    seeds = [f"seed {request.seed + index}" for index in range(request.count)][:MOST_IN_GRID]
    shown = [(label, pictures[:MOST_IN_GRID]) for label, pictures in rows]
    save_picture(request.out / GRID, labelled_grid(shown, seeds))
    report = {
        "model": base.name,
        "early": request.early,
        "late": request.late,
        "prompt": request.prompt,
        "negative": request.negative,
        "seed": request.seed,
        "alphas": list(request.alphas),
        "settings": asdict(sampling) | {"blend": {k: v for k, v in asdict(request.blend).items() if k != "alpha"}},
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(request.out / "report.json", report)
    say(f"Wrote {request.count * len(settings)} pictures and {GRID} to {request.out}")


def _save(folder: Path, seed: int, pictures: Sequence[Image.Image]) -> None:
    for index, picture in enumerate(pictures):
        save_picture(folder / f"{seed + index:05d}.png", picture)
