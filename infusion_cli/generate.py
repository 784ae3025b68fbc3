"""What the command ``generate`` does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from infusion_core.concepts import LoadedConcept
from infusion_core.embedded.adapters import read_lora, split_strength, with_lora
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw, unmentioned
from infusion_core.errors import InfusionError
from infusion_core.residual_file import load_concept
from infusion_core.schedule import ALWAYS, Window

from .console import progress, say
from .options import checked_path
from .output import check_out, peak_rss_mb, save_picture, write_report

MOST_PICTURES = 1000  # they are in memory together


@dataclass(frozen=True)
class GenerateRequest:
    """What `infusion generate` was asked for.

    Attributes:
        model: base model.
        concepts: ``FILE`` or ``FILE:strength``.
        loras: the same, of LoRA files, put on the base model one after the other.
        prompt: names the concepts.
        out: folder.
        count: pictures.
        seed: of the first picture.
        negative: prompt of the unconditional half.
        config: of a base model that is a single file.
        residual: when residuals are added.
        replacement_start, replacement_end: when maps are replaced; None for as each concept was trained.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    model: str
    concepts: tuple[str, ...]
    prompt: str
    out: Path
    count: int = 4
    seed: int = 0
    negative: str = ""
    config: Path | None = None
    residual: Window = ALWAYS
    replacement_start: float | None = None
    replacement_end: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    loras: tuple[str, ...] = ()

    def loaded(self) -> list[LoadedConcept]:
        """The concepts, read from their files.

        Raises:
            InfusionError: a file cannot be read, or two share a name.
        """
        found = [replace(c, window=self.residual, replacement=self._replacement(c)) for c in map(read, self.concepts)]
        if len({concept.name for concept in found}) < len(found):
            raise InfusionError("two concept files share a name; rename one of them")
        return found

    def _replacement(self, concept: LoadedConcept) -> Window:
        """When a concept's maps are replaced.

        Raises:
            InfusionError: that would end before it starts.
        """
        own, start, end = concept.map_window, self.replacement_start, self.replacement_end
        start, end = own.start if start is None else start, own.end if end is None else end
        if start > end:
            trained = f", as {concept.name!r} was trained" if self.replacement_end is None else ""
            raise InfusionError(f"--replacement-start {start:g} is after the end, {end:g}{trained}; give both")
        return Window(start, end)


def run_generate(request: GenerateRequest) -> None:
    """Draw pictures into a folder, with a `report.json`.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started = time.monotonic()
    if not 1 <= request.count <= MOST_PICTURES:
        raise InfusionError(f"the count must be at least 1 and at most {MOST_PICTURES}, got {request.count}")
    concepts = request.loaded()
    for concept in unmentioned(request.prompt, concepts):
        say(
            f"Note: the prompt does not hold {concept.residual.word!r}, so {concept.name!r} changes nothing; "
            f"write {concept.residual.word!r} or <{concept.name}> in it to see the concept"
        )
    files = map(split_strength, request.loras)
    loras = [(read_lora(checked_path(file)), file.name, strength) for file, strength in files]
    check_out(request.out)
    model = load_model(request.model, config=request.config)
    for lora, name, strength in loras:
        model = with_lora(model, lora, name, strength)
    settings = sampling_of(model, request.sampling)
    with progress("drawing", settings.steps * -(-request.count // 8)) as advance:
        pictures = draw(
            model, request.prompt, concepts, request.count, request.seed, settings, request.negative,
            on_step=lambda _: advance(),
        )  # fmt: skip
    for index, picture in enumerate(pictures):
        save_picture(request.out / f"{request.seed + index:05d}.png", picture)
    report = {
        "model": model.name,
        "prompt": request.prompt,
        "concepts": {concept.name: concept.strength for concept in concepts},
        "loras": request.loras,
        "seed": request.seed,
        "settings": asdict(settings) | {"residual": asdict(request.residual)},
        "replacement": {concept.name: asdict(concept.map_window) for concept in concepts},
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(request.out / "report.json", report)
    say(f"Wrote {request.count} pictures to {request.out}")


def sampling_of(model: EmbeddedModel, asked: Mapping[str, Any]) -> SampleSettings:
    """How a model samples: as it wishes, but for what was asked for; None is not."""
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(SampleSettings(model.steps, model.guidance), **given)


def read(text: str) -> LoadedConcept:
    """The concept that ``FILE`` or ``FILE:strength`` means, called as its file.

    Raises:
        InfusionError: the strength is not a number, or the file cannot be read.
    """
    file, strength = split_strength(text)
    path = checked_path(file)
    return LoadedConcept(path.stem, load_concept(path), strength)
