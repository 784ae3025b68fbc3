"""Study: DreamBlend. A run that is trained too long, its snapshots alone, and late ones guided by early ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from infusion_core import advisor
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.advising import EpochArtist, oracle_judge
from infusion_core.embedded.model import EmbeddedModel
from infusion_core.embedded.tinyworld import Concept
from infusion_core.embedded.tinyworld.captions import unseen_scenes

from ..bench import Bench
from ..measures import bare_pictures, drawn_and_scored, error_rows, openness
from ..methods.method import Customised, Guided, Learned, Method
from ..store import Cell, Result, Row
from ..tinyworld import subjects_of

STUDY = "blend"
OVERFITTING = ("dreambooth-plain", "lora-published")  # constant rates, so that every snapshot is a run's end as well
BASE = 0  # the step of the model before training
ALPHAS = (0.02, 0.04, 0.08)  # of the gradient
SHARE = 1.0  # of replaced maps
PROPORTION = 4  # a late model of so many times the early one's steps is what the paper suggests
ADVISED = ", as advised"  # ends the title of what the advisor chose from the same snapshots
ADVISED_PROMPTS, ADVISED_PICTURES, ADVISED_SEED = 4, 2, 9000  # it looks at other prompts and seeds than are scored
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
        return alone if self.early is None else f"{alone}, {self._guidance}"

    def guided_title(self, method: Method) -> str:
        """For tables that tell the late model's steps themselves."""
        return f"{method.title}, {self._guidance}"

    @property
    def _guidance(self) -> str:
        guide = "base" if self.early == BASE else f"{self.early} steps"
        how = "" if self.settings.mode == "gradient" else "maps replaced, "
        return f"guided by {guide}, {how}alpha {self.settings.alpha:g}"


def stages(snapshots: tuple[int, ...], guides: tuple[int, ...]) -> Iterator[Stage]:
    """Every snapshot alone; the last one guided by the base and by earlier ones; and the paper's proportion."""
    yield from map(Stage, snapshots)
    *earlier, last = snapshots
    for early in guides:
        for alpha in ALPHAS:
            yield Stage(last, early, BlendSettings(alpha=alpha))
        yield Stage(last, early, BlendSettings("replacement", SHARE))
    for late in earlier:
        if late % PROPORTION == 0 and late // PROPORTION in snapshots:
            yield Stage(late, late // PROPORTION, BlendSettings())


def cells(bench: Bench) -> list[Cell]:
    """Per concept one cell for each method and stage."""
    scale, out = bench.scale, []
    snapshots = tuple(step for step in scale.blend_steps if step <= scale.max_steps)
    guides = (BASE, *(step for step in scale.blend_guides if step in snapshots[:-1]))
    amounts = bench.amounts("blend_prompts", "blend_seeds", "blend_samples")
    for concept in bench.concepts[: scale.blend_concepts]:
        subjects = subjects_of([concept])
        for method in bench.methods:
            if method.key not in OVERFITTING or len(snapshots) < 2:
                continue
            for stage in stages(snapshots, guides):
                sources = [
                    bench.source(method, subjects, snapshots[-1], step) for step in (stage.late, stage.early) if step
                ]
                compute = partial(_measure, bench, method, concept, snapshots, stage)
                depends = concept, amounts, stage.settings, stage.early, *sources
                out.append(bench.cell(STUDY, stage.title(method), concept.name, compute, *depends))
            compute = partial(_advised, bench, method, concept, snapshots)
            sources = [bench.source(method, subjects, snapshots[-1], step) for step in snapshots]
            title, looked = f"{method.title}{ADVISED}", (ADVISED_PROMPTS, ADVISED_PICTURES, ADVISED_SEED)
            out.append(bench.cell(STUDY, title, concept.name, compute, concept, amounts, looked, *sources))
    return out


def _measure(bench: Bench, method: Method, concept: Concept, snapshots: tuple[int, ...], stage: Stage) -> Result:
    run = bench.train(method, subjects_of([concept]), snapshots)
    customised = staged(bench, method, run, stage)
    return _result(bench, stage.title(method), concept, stage.late, customised)


def _advised(bench: Bench, method: Method, concept: Concept, snapshots: tuple[int, ...]) -> Result:
    """What the advisor chooses, scored like every stage, and the collapse of every snapshot that it measured."""
    run = bench.train(method, subjects_of([concept]), snapshots)
    scored = unseen_scenes(concept, bench.scale.blend_prompts)
    scenes = [s for s in unseen_scenes(concept, len(scored) + 2 * ADVISED_PROMPTS) if s not in scored]
    judge = oracle_judge(concept, scenes[:ADVISED_PROMPTS])
    (phrase,) = staged(bench, method, run, Stage(snapshots[-1])).phrases

    @lru_cache(2)
    def model_of(name: str) -> EmbeddedModel:
        return bench.studio.base if name == advisor.BASE else staged(bench, method, run, Stage(int(name))).model

    artist = EpochArtist(model_of, ADVISED_PICTURES, ADVISED_SEED, bench.sampling)
    survey = advisor.Survey(artist, judge.prompts, phrase, judge.scores, lambda: None)
    alone = survey.alone(map(str, snapshots))
    setup = advisor.advise(alone, survey.guided(advisor.trials(alone))).setup
    early = None if setup.early is None else BASE if setup.early == advisor.BASE else int(setup.early)
    stage = Stage(int(setup.late), early, BlendSettings(alpha=setup.alpha))
    result = _result(bench, f"{method.title}{ADVISED}", concept, stage.late, staged(bench, method, run, stage))
    chosen = {"late": stage.late, "early": -1 if early is None else early, "alpha": setup.alpha}
    for name, value in chosen.items():
        result.rows.append(
            Row(STUDY, f"{method.title}{ADVISED}", concept.name, stage.late, "", bench.seed, name, value)
        )
    for step, judged in zip(snapshots, alone[1:], strict=True):
        title, collapse = Stage(step).title(method), judged.collapse or 0.0
        result.rows.append(Row(STUDY, title, concept.name, step, "", bench.seed, "collapse", collapse))
    return result


def staged(bench: Bench, method: Method, run: Mapping[int, tuple[Learned, float]], stage: Stage) -> Customised:
    """A stage of a run, which draws."""
    customised = method.apply(bench.studio, [run[stage.late][0]])
    if stage.early is None:
        return customised
    early = bench.studio.base if stage.early == BASE else method.apply(bench.studio, [run[stage.early][0]]).model
    return Guided(customised.model, customised.phrases, early=early, blend=stage.settings)


def _result(bench: Bench, name: str, concept: Concept, step: int, customised: Customised) -> Result:
    scale = bench.scale
    seeds = bench.first_seeds(scale.blend_seeds)
    scored = drawn_and_scored(customised, concept, scale.blend_prompts, seeds, bench.sampling)
    bare = bare_pictures(customised, customised.phrases[0], scale.blend_samples, bench.sampling)
    rows = error_rows(STUDY, name, concept, step, scored)
    for measure, value in openness(bare, bench.studio.base.encode(bare), concept).items():
        rows.append(Row(STUDY, name, concept.name, step, "", bench.seed, measure, value))
    shown = [s for s in scored if s.seed == bench.seed][:SHOWN]
    return Result(rows, {}, {f"{concept.name}: {s.prompt}"[:200]: s.picture for s in shown})
