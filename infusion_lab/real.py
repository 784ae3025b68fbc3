"""``infusion lab --model``: the paper's Table 1 on DreamBooth's dataset, for whoever has the weights.

CLIP-I and DINO: all generated x reference pairs, raw cosines; CLIP-T: each picture with its prompt, the class word
in the subject's place. Recipes are the published ones, and the project's defaults for Infusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from infusion_cli.console import progress, say, say_table
from infusion_cli.output import write_report
from infusion_cli.pages import inline_picture, render_page
from infusion_core.atomic import write_atomic
from infusion_core.embedded.model import EmbeddedModel, load_model
from infusion_core.embedded.photos import square, to_tensor
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.errors import InfusionError
from infusion_core.metrics.similarity import diversity, similarity, text_similarity

from .bench import Bench, Scale
from .dataset import Dataset, read_dataset
from .judges import Judges
from .methods.method import Method, Subject
from .methods.registry import published_methods
from .report.intervals import Unit
from .report.page import TEMPLATES, Strip, recipes
from .report.tables import Figures, brief, figures, table
from .store import Cell, Result, Row, Store, tidy_csv
from .studio import Studio

STUDY = "table1"
COLUMNS = {
    "clip_t": ("CLIP-T", ".3f"),
    "paper_clip_t": ("paper's", ".3f"),
    "clip_i": ("CLIP-I", ".3f"),
    "paper_clip_i": ("paper's", ".3f"),
    "dino": ("DINO", ".3f"),
    "paper_dino": ("paper's", ".3f"),
}
MORE = {
    "diversity": ("diversity (DINO)", ".3f"),
    "bytes": ("stored bytes", ",.0f"),
    "training_seconds": ("training (s)", ".0f"),
}
# Table 1 of Infusion (arXiv 2404.14007): SD1.5, 20 concepts, 25 prompts, 5 images each; CLIP-T, CLIP-I, DINO.
PAPER = {
    "dreambooth": (0.255, 0.838, 0.721),
    "lora": (0.264, 0.791, 0.615),
    "textual-inversion": (0.240, 0.780, 0.584),
    "custom-diffusion": (0.256, 0.800, 0.643),
    "perfusion": (0.242, 0.729, 0.505),
    "infusion": (0.267, 0.816, 0.697),
}


@dataclass(frozen=True)
class Request:
    """What was asked for; `limit` caps subjects, prompts and training steps, 0 for none."""

    model: str
    dataset: Path
    clip: Path
    dino: Path
    out: Path
    config: Path | None = None
    rare_word: str = "sks"
    count: int = 5
    limit: int = 0
    seed: int = 0


def run_real(request: Request, methods: Sequence[str] = ()) -> None:
    """Train every method on every subject, draw, score, and write results.csv, report.json and index.html.

    Raises:
        InfusionError: something is missing, or the model has two text encoders.
    """
    model = _checked(request)
    data = read_dataset(request.dataset, request.rare_word)
    chosen = [m for m in published_methods() if not methods or m.key in methods]
    bench = _bench(request, model, data, chosen)
    judges = Judges(request.clip, request.dino, model.denoiser.device)
    cells = [
        _cell(bench, judges, method, subject, data.prompts(subject)[: request.limit or None], request.count)
        for subject in data.subjects[: request.limit or None]
        for method in chosen
    ]
    results = []
    with progress("table 1", len(cells)) as advance:
        for cell in cells:
            results.append((cell, bench.store.result(cell)))
            advance(note=f"{cell.method}, {cell.concept}")
    _write(request.out, bench, results)


def _checked(request: Request) -> EmbeddedModel:
    """The model, in float32, which training whole networks needs."""
    model = load_model(request.model, config=request.config)
    if len(model.text.encoders) != 1:
        raise InfusionError("the lab's baselines know one text encoder; give a Stable Diffusion 1.x or 2.x")
    ids, _ = model.text.encoders[0].tokenizer.split(request.rare_word)
    if len(ids) != 1:
        raise InfusionError(
            f"{request.rare_word!r} is {len(ids)} tokens of this model; give a rare word of one (--token)"
        )
    for network in (model.denoiser.unet, model.vae, model.text.encoders[0].model):
        network.float()
    return model


def _bench(request: Request, model: EmbeddedModel, data: Dataset, methods: Sequence[Method]) -> Bench:
    folder = request.out / "table1" / model.name
    studio = Studio(model, folder / "studio", data.captions, min(200, request.limit or 200))
    scale = replace(Scale(), max_steps=request.limit or Scale().max_steps)
    sampling = SampleSettings(model.steps, model.guidance)
    return Bench(studio, Store(folder), scale, methods, request.seed, sampling)


def _cell(bench: Bench, judges: Judges, method: Method, subject: Subject, prompts: tuple[str, ...], count: int) -> Cell:
    """A method's scores on a subject."""
    step = bench.steps(method)
    source = bench.source(method, [subject], step, step)
    compute = partial(_measure, bench, judges, method, subject, prompts, count)
    return bench.cell(STUDY, method.key, subject.name, compute, judges.identity, prompts, count, source)


def _measure(
    bench: Bench, judges: Judges, method: Method, subject: Subject, prompts: Sequence[str], count: int
) -> Result:
    step = bench.steps(method)
    learned, seconds = bench.train(method, [subject], [step])[step]
    customised = method.apply(bench.studio, [learned])
    phrase = customised.phrases[0]
    pictures = [customised.draw(p.format(phrase), count, bench.seed, bench.sampling) for p in prompts]
    pixels = torch.cat([to_tensor(drawn) for drawn in pictures]) / 2 + 0.5
    resolution = bench.studio.base.resolution
    photos = to_tensor([square(p, resolution) for p in subject.photos]) / 2 + 0.5
    texts = judges.clip_texts([p.format(subject.word) for p in prompts]).repeat_interleave(count, 0)
    seen, dino = judges.clip_images(pixels), judges.dino_images(pixels)
    found = {
        "clip_t": text_similarity(seen, texts),
        "clip_i": similarity(seen, judges.clip_images(photos)),
        "dino": similarity(dino, judges.dino_images(photos)),
        "bytes": float(len(learned.data)),
    }
    if count > 1:
        found["diversity"] = diversity(dino, torch.arange(len(prompts)).repeat_interleave(count))
    rows = [Row(STUDY, method.key, subject.name, step, "", bench.seed, m, v) for m, v in found.items()]
    shown = {p: square(drawn[0], 256) for p, drawn in list(zip(prompts, pictures, strict=True))[:4]}
    return Result(rows, {"training_seconds": seconds}, shown)


def _write(out: Path, bench: Bench, results: Sequence[tuple[Cell, Result]]) -> None:
    rows = [row for _, result in results for row in result.rows]
    costs = [
        Row(STUDY, cell.method, cell.concept, 0, "", bench.seed, m, v)
        for cell, result in results
        for m, v in result.costs.items()
    ]
    names = {m.key: m.title for m in bench.methods}
    note = (
        "Raw cosines: CLIP ViT-B/32 and DINO ViT-S/16; means over subjects, ± half of the 95% interval. The paper's "
        "figures are of SD1.5 and 20 concepts of its authors' choice."
    )
    found = beside_the_paper(figures([*rows, *costs], STUDY))
    shown = table("Table 1", note, found, COLUMNS | MORE, names)
    strips = [Strip(f"{c.concept}: {names[c.method]}", list(r.pictures.items())) for c, r in results]
    write_atomic(out / "results.csv", tidy_csv(rows).encode())
    write_atomic(out / "costs.csv", tidy_csv(costs).encode())
    told = {"model": bench.studio.base.name, "recipes": recipes(bench), "seed": bench.seed}
    write_report(out / "report.json", told | {"table": {"header": shown.header, "lines": shown.lines}})
    page = render_page("lab-real.html.j2", TEMPLATES, model=bench.studio.base.name, table=shown, strips=strips,
                       recipes=recipes(bench), inline=inline_picture)  # fmt: skip
    write_atomic(out / "index.html", page.encode())
    beside = brief("Table 1, means", found, COLUMNS, names)
    say_table(beside.title, beside.header, beside.lines)
    say(f"Open {(out / 'index.html').resolve()}")


def beside_the_paper(found: Figures) -> Figures:
    """The figures with the paper's own of the same methods."""
    methods = dict.fromkeys(method for method, _ in found)
    return {**found, **{
        (method, f"paper_{measure}"): {Unit(""): value}
        for method in methods if method in PAPER
        for measure, value in zip(("clip_t", "clip_i", "dino"), PAPER[method], strict=True)
    }}  # fmt: skip
