"""The paper's figures 10 and 11: how far training moves a model, under other captions and in its own class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

import safetensors.torch
import torch
from torch import Tensor

from infusion_core.atomic import write_atomic
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tasks import draw_latents
from infusion_core.errors import InfusionError
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
SEED = 300_000  # of the first latent; class pictures and scored pictures have others
COLUMNS = {
    FISHER: ("latent Fisher divergence, other captions", ".3g"),
    W2: ("W2² from the base, class word", ".1f"),
}
NOTE = (
    "Latent Fisher divergence (eq. 4) over captioned pictures whose captions do not hold the class word. W2²: squared "
    "2-Wasserstein distance (eq. 5), Ledoit-Wolf shrinkage, between latents that the base model and the customised one "
    "draw from the same noise for prompts with the class word. The row of the base model's other seeds is what few "
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

    def cell(self, measure: str, compute: Callable[[Point], float], *depends: object) -> Cell:
        """A cell of one number."""
        return self.bench.cell(
            STUDY, self.method.key, self.subject.name, lambda: self._result(measure, compute(self)), measure, *depends,
            self.source,
        )  # fmt: skip

    def _result(self, measure: str, value: float) -> Result:
        return Result([Row(STUDY, self.method.key, self.subject.name, self.step, "", self.bench.seed, measure, value)])


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
        compute = partial(_floor, bench, subject, steps, prompts, samples)
        out.append(bench.cell(STUDY, FLOOR, subject.name, compute, W2, prompts, samples, steps))
        for point in (Point(bench, method, subject, steps, step) for method in bench.methods for step in steps):
            fisher = partial(_fisher, pool, others, latents, request.samples)
            out.append(point.cell(FISHER, fisher, about, request.samples))
            out.append(point.cell(W2, partial(_distance, prompts, samples), prompts, samples))
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
    path = studio.folder / f"drawn-{key}.safetensors"
    if not path.exists():
        latents = drawn(Customised(studio.base, ()), prompts, samples, seed, bench.sampling)
        write_atomic(path, safetensors.torch.save({"latents": latents}))
    found: Tensor = safetensors.torch.load_file(path)["latents"]
    return found


def _floor(bench: Bench, subject: Subject, steps: Sequence[int], prompts: Sequence[str], samples: int) -> Result:
    """The distance between two sets of the base model's latents; the true one is 0."""
    one, other = (base_latents(bench, prompts, samples, bench.seed + SEED + first) for first in (0, samples))
    distance = latent_wasserstein(one, other)
    return Result([Row(STUDY, FLOOR, subject.name, step, "", bench.seed, W2, distance) for step in steps])


def _fisher(
    pool: Sequence[Captioned], others: Sequence[int], latents: Callable[[], Tensor], draws: int, point: Point
) -> float:
    base, texts = point.bench.studio.base, [pool[i].caption for i in others]
    pictures = latents()[others]  # before hours of training, so that a damaged picture is found
    models = predictor(Customised(base, ()), texts), predictor(point.applied(), texts)
    sigmas, seed = base.denoiser.sigmas, point.bench.seed
    return fisher_divergence(*models, pictures, len(texts), sigmas, draws, seed, paired=True).interval.mean


def _distance(prompts: Sequence[str], samples: int, point: Point) -> float:
    bench, seed = point.bench, point.bench.seed + SEED
    plain = base_latents(bench, prompts, samples, seed)
    return latent_wasserstein(plain, drawn(point.applied(), prompts, samples, seed, bench.sampling))


def last_table(rows: Sequence[Row], names: Mapping[str, str]) -> Table:
    """The last point of both figures."""
    last = max((r.step for r in rows if r.study == STUDY), default=0)
    return table(f"Figures 10 and 11, after {last} steps", NOTE, figures(rows, STUDY, last), COLUMNS, names)
