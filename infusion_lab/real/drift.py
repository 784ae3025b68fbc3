"""The paper's figures 10 and 11: how far training moves a model, under other captions and in its own class.

Pictures of the class are seen by DINO too: is what the base model draws still drawn, and nothing else (APT's question)?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from infusion_core.atomic import write_atomic
from infusion_core.embedded.judges import as_pixels
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw_latents
from infusion_core.errors import InfusionError
from infusion_core.metrics.coverage import NEIGHBOURS, coverage
from infusion_core.metrics.fisher import fisher_divergence
from infusion_core.metrics.wasserstein import latent_wasserstein

from ..bench import Bench
from ..identity import digest
from ..measures import predictor
from ..methods.method import Customised, Method, Subject
from ..report.tables import Table, figures, table
from ..store import Cell, Result, Row
from ..studies.curves import FLOOR
from .captioned import Captioned, encoded, identity_of, read_captioned
from .dataset import holds
from .setup import RealLab

STUDY = "drift"
FISHER, W2 = "fisher", "w2_class"
DECODED = 8  # latents at once
SEED = 300_000  # of the first latent; class pictures and scored pictures have others
COLUMNS = {
    FISHER: ("latent Fisher divergence, other captions", ".3g"),
    W2: ("W2² from the base, class word", ".1f"),
    "frechet": ("Fréchet distance, class word", ".1f"),
    "class_precision": ("precision, class word", ".0%"),
    "class_recall": ("recall, class word", ".0%"),
}
NOTE = (
    "Latent Fisher divergence (eq. 4) over captioned pictures whose captions do not hold the class word. W2²: squared "
    "2-Wasserstein distance (eq. 5), Ledoit-Wolf shrinkage, between latents that the base model and the customised one "
    "draw from the same noise for prompts with the class word. Fréchet distance (FID's, of DINO's features instead of "
    "Inception's), precision and recall: of the same pictures. The row of the base model's other seeds is what few "
    "samples alone add. Infusion binds the class word itself, so its distance holds the change that is wanted."
)


@dataclass(frozen=True)
class Point:
    """A method at a step of its training on a subject, in a run to the last of the steps."""

    bench: Bench
    method: Method
    subject: Subject
    steps: tuple[int, ...]
    step: int

    @property
    def source(self) -> tuple[object, ...]:
        """The training run, for a cell."""
        return self.bench.source(self.method, [self.subject], max(self.steps), self.step)

    def applied(self) -> Customised:
        """The model with what was learned; the first point that is asked for trains the whole run."""
        learned, _ = self.bench.train(self.method, [self.subject], self.steps)[self.step]
        return self.method.apply(self.bench.studio, [learned])

    def cell(self, what: str, compute: Callable[[Point], Mapping[str, float]], *depends: object) -> Cell:
        """A cell of numbers by measure."""
        return self.bench.cell(
            STUDY, self.method.key, self.subject.name, lambda: self._result(compute(self)), what, *depends, self.source
        )

    def _result(self, found: Mapping[str, float]) -> Result:
        told = STUDY, self.method.key, self.subject.name, self.step, "", self.bench.seed
        return Result([Row(*told, measure, value) for measure, value in found.items()])


def cells(lab: RealLab) -> list[Cell]:
    """Per concept one for the yardstick, and two per method and step; none without captioned pictures.

    Raises:
        InfusionError: there are no captioned pictures, or all are about one of the concepts.
    """
    request, bench = lab.request, lab.bench
    if request.pictures is None:
        return []
    pool = read_captioned(request.pictures, request.samples, request.seed)
    latents, about = cache(partial(encoded, bench.studio.base, pool)), identity_of(pool)
    steps = tuple(sorted({min(step, bench.scale.max_steps) for step in request.steps}))
    out = []
    for subject in varied(lab.data.subjects)[: request.most(request.figure_concepts)]:
        prompts = class_prompts(lab, subject)
        samples = request.samples if not request.limit else min(request.samples, max(2, request.limit * len(prompts)))
        others = about_others(pool, subject)
        seen_by = lab.judges.identity
        compute = partial(_floor, lab, subject, steps, prompts, samples)
        out.append(bench.cell(STUDY, FLOOR, subject.name, compute, W2, seen_by, prompts, samples, steps))
        for point in (Point(bench, method, subject, steps, step) for method in bench.methods for step in steps):
            fisher = partial(_fisher, pool, others, latents, request.samples)
            out.append(point.cell(FISHER, fisher, about, request.samples))
            out.append(point.cell(W2, partial(_distances, lab, prompts, samples), seen_by, prompts, samples))
    return out


def varied(subjects: Sequence[Subject]) -> list[Subject]:
    """The first subject of every class, then the second ones, and so on."""
    words = [s.word for s in subjects]
    earlier = [words[:i].count(word) for i, word in enumerate(words)]
    return [subjects[i] for i in sorted(range(len(words)), key=earlier.__getitem__)]


def class_prompts(lab: RealLab, subject: Subject) -> tuple[str, ...]:
    """What the figures ask for a subject's class."""
    most = lab.request.most(lab.request.figure_prompts)
    return tuple(p.format(subject.word) for p in lab.data.prompts(subject)[:most])


def about_others(pool: Sequence[Captioned], subject: Subject) -> list[int]:
    """Which captions hold neither the class word of a subject nor its rare word.

    Raises:
        InfusionError: none.
    """
    words = subject.word, subject.rare_word
    found = [i for i, c in enumerate(pool) if not any(holds(c.caption, word) for word in words)]
    if not found:
        raise InfusionError(f"every caption holds {subject.word!r}; add pictures of other things (--pictures)")
    return found


def drawn(customised: Customised, prompts: Sequence[str], samples: int, seed: int, settings: SampleSettings) -> Tensor:
    """Latents (samples, C, h, w) of prompts, as many of each; the noise of sample i is that of seed + i."""
    counts = [samples // len(prompts) + (i < samples % len(prompts)) for i in range(len(prompts))]
    settings = customised.sampling(settings)
    found = [
        latents.cpu()
        for prompt, count, first in zip(prompts, counts, accumulate(counts, initial=seed), strict=False)
        for latents in draw_latents(customised.model, prompt, customised.concepts, count, first, settings)
    ]
    return torch.cat(found)


def base_latents(bench: Bench, prompts: Sequence[str], samples: int, seed: int) -> Tensor:
    """What the base model draws, (samples, C, h, w); drawn once and kept."""
    studio = bench.studio
    key = digest(studio.base_identity, bench.sampling, tuple(prompts), samples, seed)

    def made() -> Tensor:
        return drawn(Customised(studio.base, ()), prompts, samples, seed, bench.sampling)

    return _kept(studio.folder / f"drawn-{key}.safetensors", made)


def base_features(lab: RealLab, prompts: Sequence[str], samples: int, seed: int) -> Tensor:
    """What DINO sees of the base model's pictures, (samples, D); kept as well."""
    bench = lab.bench
    key = digest(bench.studio.base_identity, bench.sampling, tuple(prompts), samples, seed, lab.judges.identity)

    def made() -> Tensor:
        return features(lab, base_latents(bench, prompts, samples, seed))

    return _kept(bench.studio.folder / f"seen-{key}.safetensors", made)


def features(lab: RealLab, latents: Tensor) -> Tensor:
    """What DINO sees of the pictures of latents (N, C, h, w): (N, D)."""
    model = lab.bench.studio.base
    pictures = (model.decode(part.to(model.denoiser.device)) for part in torch.split(latents, DECODED))
    return torch.cat([lab.judges.dino_images(as_pixels(of, model.resolution)) for of in pictures])


def apart(latents: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Distances of what two models draw; the first is the reference.

    Args:
        latents: of both, (N, C, h, w).
        seen: features of the pictures, (N, D).
    """
    found = {W2: latent_wasserstein(*latents), "frechet": latent_wasserstein(*seen, shrinkage=0.0)}
    if len(seen[0]) > NEIGHBOURS:
        kept = coverage(*seen)
        found |= {"class_precision": kept.precision, "class_recall": kept.recall}
    return found


def _kept(path: Path, made: Callable[[], Tensor]) -> Tensor:
    """A tensor that is made once."""
    if not path.exists():
        write_atomic(path, safetensors.torch.save({"latents": made()}))
    found: Tensor
    (found,) = safetensors.torch.load_file(path).values()
    return found


def _floor(lab: RealLab, subject: Subject, steps: Sequence[int], prompts: Sequence[str], samples: int) -> Result:
    """The distances between two sets of the base model's pictures; the true ones are 0."""
    bench = lab.bench
    seeds = [bench.seed + SEED + first for first in (0, samples)]
    one, other = (base_latents(bench, prompts, samples, seed) for seed in seeds)
    seen, others_seen = (base_features(lab, prompts, samples, seed) for seed in seeds)
    found = apart((one, other), (seen, others_seen))
    return Result(
        [
            Row(STUDY, FLOOR, subject.name, step, "", bench.seed, measure, value)
            for step in steps
            for measure, value in found.items()
        ]
    )


def _fisher(
    pool: Sequence[Captioned], others: Sequence[int], latents: Callable[[], Tensor], draws: int, point: Point
) -> dict[str, float]:
    base, texts = point.bench.studio.base, [pool[i].caption for i in others]
    pictures = latents()[others]  # before hours of training, so that a damaged picture is found
    models = predictor(Customised(base, ()), texts), predictor(point.applied(), texts)
    sigmas, seed = base.denoiser.sigmas, point.bench.seed
    found = fisher_divergence(*models, pictures, len(texts), sigmas, draws, seed, paired=True)
    return {FISHER: found.interval.mean}


def _distances(lab: RealLab, prompts: Sequence[str], samples: int, point: Point) -> dict[str, float]:
    bench, seed = lab.bench, lab.bench.seed + SEED
    plain, seen = base_latents(bench, prompts, samples, seed), base_features(lab, prompts, samples, seed)
    ours = drawn(point.applied(), prompts, samples, seed, bench.sampling)
    return apart((plain, ours), (seen, features(lab, ours)))


def last_table(rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    """The last point of both figures."""
    last = max((r.step for r in rows if r.study == STUDY), default=0)
    return table(f"Figures 10 and 11, after {last} steps", NOTE, figures(rows, STUDY, last), COLUMNS, names)
