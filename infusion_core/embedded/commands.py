"""What the commands `train`, `generate` and `inspect` do, apart from reading their options."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from ..captions import CAPTION_TEMPLATES
from ..errors import InfusionError
from ..residual_file import Storage, load_concept, load_state, save_concept, save_state
from ..residuals import ConceptResidual
from ..trainer import Trainer, TrainSettings
from .console import INTERRUPTED, Interrupt, console, progress, say
from .model import EmbeddedModel, load_model
from .output import peak_rss_mb, save_picture, write_report
from .photos import load_photos, square, thumbnail
from .sampling import SampleSettings
from .tasks import draw, require_mention, trainer_for
from .tinyworld.world import SHAPES

TINYWORLD_FIGURES = (
    "concept_error",
    "scene_error",
    "base_concept_error",
    "base_scene_error",
    "oracle_caption_concept_error",
    "gap_closed",
)


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
    started = time.monotonic()
    if request.out.suffix != ".safetensors":
        raise InfusionError(f"--out names the concept file and must end in .safetensors, got {request.out}")
    photos = load_photos(request.images)
    start = load_concept(request.start) if request.start else None
    folder = request.out.with_suffix(".snapshots")
    state_file = folder / "state.safetensors"
    if request.resume and not state_file.is_file():
        raise InfusionError(f"nothing to resume: there is no {state_file}; leave --resume out")
    state = load_state(state_file) if request.resume else None
    model = model or load_model(request.model, config=request.config)
    trainer = trainer_for(model, photos, request.word, request.settings, request.templates, start, state)
    snapshots: list[dict[str, Any]] = []
    losses: list[float] = []

    def snapshot(validation: float | None) -> Path:
        path = folder / f"step-{trainer.step:05d}.safetensors"
        save_concept(path, _described(trainer, request, model, validation, photos[0]), request.storage)
        save_state(state_file, trainer.state())
        snapshots.append({"step": trainer.step, "validation_loss": validation, "file": str(path)})
        return path

    with Interrupt() as interrupt, progress(f"learning {request.word!r}", request.settings.steps) as advance:
        advance(steps=trainer.step)
        for report in trainer.run():
            losses.append(report.loss)
            advance(note=f"loss {report.loss:.4f}")
            if report.validation_loss is not None:
                snapshot(report.validation_loss)
            if interrupt.asked:
                break
    if trainer.step < request.settings.steps:
        say(f"Stopped at step {trainer.step}. A usable concept is in {snapshot(None)}")
        say("Give the same command with --resume to go on.")
        sys.exit(INTERRUPTED)

    validation = snapshots[-1]["validation_loss"] if snapshots else None
    concept = _described(trainer, request, model, validation, photos[0])
    size = save_concept(request.out, concept, request.storage)
    figures: dict[str, Any] = {
        **dict.fromkeys(TINYWORLD_FIGURES),
        "model": model.name,
        "word": request.word,
        "images": len(photos),
        "settings": asdict(request.settings),
        "losses": losses,
        "snapshots": snapshots,
        "concept_file": str(request.out),
        "concept_file_bytes": size,
        "parameters": concept.parameter_count,
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    trained = Trained(concept, figures, photos)
    write_report(request.out.with_name("report.json"), figures)
    if score and model.name == "tinyworld":
        figures.update(score_on_tinyworld(trained, model))
        write_report(request.out.with_name("report.json"), figures)
    say(f"Wrote {request.out} ({size:,} bytes) and report.json beside it")
    return trained


def score_on_tinyworld(trained: Trained, model: EmbeddedModel, seeds: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """The figures only TinyWorld can give: the oracle reads the concept off the photos and scores unseen prompts.

    Nothing when the word is not one of TinyWorld's shapes.
    """
    from .tinyworld import evaluate as ev

    if trained.concept.word not in SHAPES:
        return {}
    started = time.monotonic()
    concept = ev.read_concept([square(p, model.resolution) for p in trained.photos], trained.concept.word)
    scenes = ev.unseen_scenes(concept)
    settings = SampleSettings(model.steps, model.guidance)
    with progress("scoring unseen prompts", 3 * len(scenes)) as advance:
        bare = ev.evaluate(model, concept, scenes, seeds, settings, on_scene=advance)
        told = ev.evaluate(model, concept, scenes, seeds, settings, describe=True, on_scene=advance)
        ours = ev.evaluate(model, concept, scenes, seeds, settings, trained.concept, on_scene=advance)
    figures = ev.headline(bare, told, ours) | {"appearance_read_from_photos": concept.look.words}
    return {**figures, "scoring_seconds": time.monotonic() - started, "peak_rss_mb": peak_rss_mb()}


def run_generate(
    model_name: str,
    concepts: Sequence[str],
    prompt: str,
    count: int,
    out: Path,
    seed: int,
    negative: str = "",
    config: Path | None = None,
    **overrides: Any,
) -> None:
    """Draw pictures into a folder, with a `report.json`.

    Args:
        model_name: base model.
        concepts: ``FILE`` or ``FILE:strength``.
        prompt: names the concepts.
        count: pictures.
        out: folder.
        seed: of the first picture.
        negative: prompt of the unconditional half.
        config: of a base model that is a single file.
        overrides: fields of `SampleSettings`; None leaves the model's own.

    Raises:
        InfusionError: bad input, or the disk is full.
    """
    started = time.monotonic()
    if count < 1:
        raise InfusionError(f"the count must be at least 1, got {count}")
    loaded = dict(parse_concept(text) for text in concepts)
    if len(loaded) < len(concepts):
        raise InfusionError("two concept files share a name; rename one of them")
    require_mention(prompt, loaded)
    model = load_model(model_name, config=config)
    settings = replace(
        SampleSettings(model.steps, model.guidance), **{k: v for k, v in overrides.items() if v is not None}
    )
    with progress("drawing", settings.steps * -(-count // 8)) as advance:
        pictures = draw(model, prompt, loaded, count, seed, settings, negative, on_step=lambda _: advance())
    for index, picture in enumerate(pictures):
        save_picture(out / f"{seed + index:05d}.png", picture)
    report = {
        "model": model.name,
        "prompt": prompt,
        "concepts": {name: strength for name, (_, strength) in loaded.items()},
        "seed": seed,
        "settings": asdict(settings),
        "seconds": time.monotonic() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    write_report(out / "report.json", report)
    say(f"Wrote {count} pictures to {out}")


def run_inspect(path: Path, as_json: bool, out: Path | None = None) -> None:
    """Print what a concept file holds; write it to `out`/report.json too if given.

    Raises:
        InfusionError: the file cannot be read.
    """
    concept = load_concept(path)
    facts: dict[str, Any] = {
        "word": concept.word,
        "base": concept.architecture,
        "layout": concept.layout,
        "prediction": concept.prediction,
        "context_width": concept.context_width,
        "tokens": concept.tokens,
        "bins": concept.bins,
        "parameters": concept.parameter_count,
        "file_bytes": path.stat().st_size,
        "thumbnail": "yes" if concept.thumbnail else "no",
        **concept.training,
    }
    norms = {name: float(t.norm(dim=-1).mean()) for name, t in concept.tensors.items()}
    if out:
        write_report(out / "report.json", facts | {"mean_norm": norms})
    if as_json:
        print(json.dumps(facts | {"mean_norm": norms}, indent=2))
        return
    table = Table(title=str(path), show_header=False)
    for key, value in facts.items():
        table.add_row(key, str(value))
    console.print(table)
    sizes = Table("place", "shape (bins, tokens, width)", "mean norm")
    for name, tensor in concept.tensors.items():
        sizes.add_row(name, str(tuple(tensor.shape)), f"{norms[name]:.3f}")
    console.print(sizes)


def parse_concept(text: str) -> tuple[str, tuple[ConceptResidual, float]]:
    """``FILE`` or ``FILE:strength`` as name, concept and strength.

    Raises:
        InfusionError: the strength is not a number, or the file cannot be read.
    """
    file, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        file, strength = text, "1"
    try:
        scale = float(strength)
    except ValueError:
        raise InfusionError(f"the strength in {text!r} is not a number; write FILE.safetensors:0.8") from None
    path = Path(file)
    return path.stem, (load_concept(path), scale)


def _described(
    trainer: Trainer, request: TrainRequest, model: EmbeddedModel, validation: float | None, photo: Image.Image
) -> ConceptResidual:
    """The concept as learned so far, with its settings and a thumbnail for the file."""
    settings = request.settings
    training = {
        "steps": str(trainer.step),
        "lr": f"{settings.learning_rate:g}",
        "batch": str(settings.batch_size * settings.accumulation),
        "images": str(len(trainer.latents)),
        "seed": str(settings.seed),
        "resolution": f"{model.resolution}x{model.resolution}",
        "title": request.out.stem,
    }
    if validation is not None:
        training["validation_loss"] = f"{validation:.5f}"
    return replace(trainer.concept(), training=training, thumbnail=thumbnail(photo))
