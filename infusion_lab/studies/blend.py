"""Study: DreamBlend. A run that is trained too long, its snapshots alone, and late ones guided by early ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.tinyworld import Concept

from ..bench import Bench
from ..measures import bare_pictures, drawn_and_scored, error_rows, openness
from ..methods.method import Customised, Guided, Method
from ..store import Cell, Result, Row
from ..tinyworld import subjects_of

STUDY = "blend"
OVERFITTING = ("dreambooth-plain", "lora-published")  # constant rates, so that every snapshot is a run's end as well
BASE = 0  # the step of the model before training
ALPHAS = (0.005, 0.01, 0.02, 0.04)  # of the gradient
SHARES = (0.5, 1.0)  # of replaced maps
PROPORTION = 4  # a late model of so many times the early one's steps is what the paper suggests
SHOWN = 3  # pictures kept for the report


@dataclass(frozen=True)
class Stage:
    """A model that draws: a snapshot, alone or guided by an earlier one.

    Attributes:
        late, early: steps; `early` is None where nothing guides.
        settings: how it is guided.
    """

    late: int
    early: int | None = None
    settings: BlendSettings = field(default_factory=partial(BlendSettings, alpha=0.0))

    def title(self, method: Method) -> str:
        """For tables and figures."""
        alone = f"{method.title}, {self.late} steps"
        if self.early is None:
            return alone
        guide = "base" if self.early == BASE else f"{self.early} steps"
        how = "" if self.settings.mode == "gradient" else "maps replaced, "
        return f"{alone}, guided by {guide}, {how}alpha {self.settings.alpha:g}"


def stages(snapshots: tuple[int, ...]) -> Iterator[Stage]:
    """Every snapshot alone; the last one guided by each earlier one and by the base; and the paper's proportion."""
    yield from map(Stage, snapshots)
    *earlier, last = snapshots
    for early in (BASE, *earlier):
        for alpha in ALPHAS:
            yield Stage(last, early, BlendSettings(alpha=alpha))
        for share in SHARES:
            yield Stage(last, early, BlendSettings("replacement", share))
    for late in earlier:
        if late % PROPORTION == 0 and late // PROPORTION in snapshots:
            yield Stage(late, late // PROPORTION, BlendSettings())


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each method and stage."""
    scale, out = bench.scale, []
    snapshots = tuple(step for step in scale.blend_steps if step <= scale.max_steps)
    amounts = bench.amounts("blend_prompts", "blend_seeds", "samples")
    for concept in bench.concepts[: scale.blend_concepts]:
        subjects = subjects_of([concept])
        for method in bench.methods:
            if method.key not in OVERFITTING or len(snapshots) < 2:
                continue
            for stage in stages(snapshots):
                sources = [
                    bench.source(method, subjects, snapshots[-1], step) for step in (stage.late, stage.early) if step
                ]
                compute = partial(_measure, bench, method, concept, snapshots, stage)
                depends = concept, amounts, stage.settings, stage.early, *sources
                out.append(bench.cell(STUDY, stage.title(method), concept.name, compute, *depends))
    return out


def _measure(bench: Bench, method: Method, concept: Concept, snapshots: tuple[int, ...], stage: Stage) -> Result:
    run = bench.train(method, subjects_of([concept]), snapshots)
    customised = method.apply(bench.studio, [run[stage.late][0]])
    if stage.early is not None:
        early = bench.studio.base if stage.early == BASE else method.apply(bench.studio, [run[stage.early][0]]).model
        customised = Guided(customised.model, customised.phrases, early=early, blend=stage.settings)
    return _result(bench, stage.title(method), concept, stage.late, customised)


def _result(bench: Bench, name: str, concept: Concept, step: int, customised: Customised) -> Result:
    scale = bench.scale
    seeds = bench.first_seeds(scale.blend_seeds)
    scored = drawn_and_scored(customised, concept, scale.blend_prompts, seeds, bench.sampling)
    bare = bare_pictures(customised, customised.phrases[0], scale.samples, bench.sampling)
    rows = error_rows(STUDY, name, concept, step, scored)
    for measure, value in openness(bare, bench.studio.base.encode(bare), concept).items():
        rows.append(Row(STUDY, name, concept.name, step, "", bench.seed, measure, value))
    shown = [s for s in scored if s.seed == bench.seed][:SHOWN]
    return Result(rows, {}, {f"{concept.name}: {s.prompt}"[:200]: s.picture for s in shown})
