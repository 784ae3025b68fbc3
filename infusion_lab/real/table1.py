"""The paper's Table 1: how alike every subject is, and how well prompts are obeyed.

CLIP-I and DINO: all generated x reference pairs, raw cosines; CLIP-T and HPSv2: each picture with its prompt, the class
word in the subject's place. Recipes are the published ones, and the project's defaults for Infusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from infusion_core.embedded.judges import as_pixels
from infusion_core.embedded.photos import square, to_tensor
from infusion_core.metrics.similarity import diversity, similarity, text_similarity

from ..methods.method import Method, Subject
from ..report.intervals import Unit
from ..report.tables import Figures, Table, brief, figures, table
from ..store import Cell, Result, Row
from .setup import RealLab

STUDY = "table1"
SHOWN = 4  # pictures kept for the report
COLUMNS = {
    "clip_t": ("CLIP-T", ".3f"),
    "paper_clip_t": ("paper's", ".3f"),
    "clip_i": ("CLIP-I", ".3f"),
    "paper_clip_i": ("paper's", ".3f"),
    "dino": ("DINO", ".3f"),
    "paper_dino": ("paper's", ".3f"),
}
MORE = {
    "hps": ("HPSv2", ".3f"),
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
NOTE = (
    "Raw cosines: CLIP ViT-B/32, DINO ViT-S/16, and HPSv2 if its folder is given; means over subjects, ± half of the "
    "95% interval. The paper's figures are of SD1.5 and 20 concepts of its authors' choice."
)


def cells(lab: RealLab) -> list[Cell]:
    """One per subject and method."""
    return [
        _cell(lab, method, subject)
        for subject in lab.data.subjects[: lab.request.limit or None]
        for method in lab.bench.methods
    ]


def _cell(lab: RealLab, method: Method, subject: Subject) -> Cell:
    """A method's scores on a subject."""
    bench, count = lab.bench, lab.request.count
    step, prompts = bench.steps(method), lab.data.prompts(subject)[: lab.request.limit or None]
    source = bench.source(method, [subject], step, step)
    compute = partial(_measure, lab, method, subject, prompts)
    return bench.cell(STUDY, method.key, subject.name, compute, lab.judges.identity, prompts, count, source)


def _measure(lab: RealLab, method: Method, subject: Subject, prompts: Sequence[str]) -> Result:
    bench, judges, count = lab.bench, lab.judges, lab.request.count
    step = bench.steps(method)
    learned, seconds = bench.train(method, [subject], [step])[step]
    customised = method.apply(bench.studio, [learned])
    phrase = customised.phrases[0]
    pictures = [customised.draw(p.format(phrase), count, bench.seed, bench.sampling) for p in prompts]
    pixels = torch.cat([to_tensor(drawn) for drawn in pictures]) / 2 + 0.5
    photos = as_pixels(subject.photos, bench.studio.base.resolution)
    told = [p.format(subject.word) for p in prompts]
    texts = judges.clip_texts(told).repeat_interleave(count, 0)
    seen, dino = judges.clip_images(pixels), judges.dino_images(pixels)
    found = {
        "clip_t": text_similarity(seen, texts),
        "clip_i": similarity(seen, judges.clip_images(photos)),
        "dino": similarity(dino, judges.dino_images(photos)),
        "bytes": float(len(learned.data)),
    }
    if judges.preference is not None:
        preferred = judges.preference.texts(told).repeat_interleave(count, 0)
        found["hps"] = text_similarity(judges.preference.images(pixels), preferred)
    if count > 1:
        found["diversity"] = diversity(dino, torch.arange(len(prompts)).repeat_interleave(count))
    rows = [Row(STUDY, method.key, subject.name, step, "", bench.seed, m, v) for m, v in found.items()]
    shown = {p: square(drawn[0], 256) for p, drawn in list(zip(prompts, pictures, strict=True))[:SHOWN]}
    return Result(rows, {"training_seconds": seconds}, shown)


def tables(rows: Sequence[Row], names: Mapping[str, str]) -> tuple[Table, Table]:
    """The table for the page, and the one for a terminal, which is narrow.

    Args:
        rows: results and costs.
        names: what a method is called.
    """
    found = beside_the_paper(figures(rows, STUDY))
    return table("Table 1", NOTE, found, COLUMNS | MORE, names), brief("Table 1, means", found, COLUMNS, names)


def beside_the_paper(found: Figures) -> Figures:
    """The figures with the paper's own of the same methods."""
    methods = dict.fromkeys(method for method, _ in found)
    return {**found, **{
        (method, f"paper_{measure}"): {Unit(""): value}
        for method in methods if method in PAPER
        for measure, value in zip(("clip_t", "clip_i", "dino"), PAPER[method], strict=True)
    }}  # fmt: skip
