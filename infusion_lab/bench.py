"""What every study of the lab works with: methods, concepts, how much of everything, and the cache of training runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from infusion_core.atomic import write_atomic
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tinyworld import CONCEPTS, TUNING_CONCEPTS, Concept

from .identity import digest
from .methods.method import Learned, Method, Subject
from .store import Cell, Result, Store
from .studio import Studio
from .tinyworld import some_captions, subjects_of, with_rare_words


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        concepts: names of TinyWorld's concepts.
        prompts, seeds: of scored pictures, per concept.
        training_seeds: how often every method learns every concept, in the study of fidelity.
        draw_steps: DDIM steps of a picture.
        max_steps: training stops there even if a recipe wants more.
        snapshot_steps: at which the curves are measured.
        curve_concepts: how many concepts the curves take.
        curve_prompts, curve_seeds: of scored pictures at each of those steps, per concept.
        class_pictures: of prior preservation, per class word.
        samples: pictures of a bare prompt, for diversity and the 2-Wasserstein distance.
        fisher_prompts, fisher_draws: of the latent Fisher divergence.
        groups: concepts that are put into one prompt.
        group_prompts: prompts per group.
        blend_steps: of snapshots that draw alone, the last one under guidance too.
        blend_guides: of those that guide it, beside the base model.
        blend_concepts: how many concepts that is measured on.
        blend_prompts, blend_seeds: of scored pictures, per concept and pair.
        blend_samples: pictures of a bare prompt, per concept and pair.
        apt_steps: of snapshots in APT's ladder.
        apt_concepts: how many concepts it is climbed on.
        ablation_concepts: names of tuning concepts; what is learned from them may change Infusion's defaults.
        ablation_prompts: prompts per ablation and concept.
    """

    concepts: tuple[str, ...] = tuple(CONCEPTS)
    prompts: int = 12
    seeds: int = 2
    training_seeds: int = 3
    draw_steps: int = 15
    max_steps: int = 5000
    snapshot_steps: tuple[int, ...] = (100, 400, 1000, 2000)
    curve_concepts: int = 3
    curve_prompts: int = 6
    curve_seeds: int = 2
    class_pictures: int = 200
    samples: int = 16
    fisher_prompts: int = 32
    fisher_draws: int = 128
    groups: tuple[tuple[str, ...], ...] = (
        ("ember", "flag"),
        ("orchid", "wasp"),
        ("harlequin", "comet"),
        ("lantern", "tent"),
        ("ember", "harlequin", "tent"),
    )
    group_prompts: int = 6
    blend_steps: tuple[int, ...] = (100, 200, 400, 500, 1000, 2000)
    blend_guides: tuple[int, ...] = (500,)
    blend_concepts: int = 6
    blend_prompts: int = 8
    blend_seeds: int = 4
    blend_samples: int = 8
    apt_steps: tuple[int, ...] = (500, 2000)
    apt_concepts: int = 8
    ablation_concepts: tuple[str, ...] = tuple(TUNING_CONCEPTS)
    ablation_prompts: int = 10


QUICK = Scale(
    concepts=("ember", "wasp"),
    prompts=3,
    seeds=1,
    training_seeds=1,
    draw_steps=15,
    max_steps=100,
    snapshot_steps=(50, 100),
    curve_concepts=1,
    curve_prompts=3,
    curve_seeds=1,
    class_pictures=16,
    samples=4,
    fisher_prompts=8,
    fisher_draws=16,
    groups=(("ember", "wasp"),),
    group_prompts=2,
    blend_steps=(25, 100),
    blend_guides=(25,),
    blend_concepts=1,
    blend_prompts=2,
    blend_seeds=1,
    blend_samples=4,
    apt_steps=(25, 100),
    apt_concepts=1,
    ablation_concepts=("acorn",),
    ablation_prompts=3,
)
FULL = Scale(class_pictures=100)
SAMPLING = SampleSettings(FULL.draw_steps, 3.0)


@dataclass(frozen=True)
class Bench:
    """One run of the lab.

    Attributes:
        studio: the base model.
        store: finished cells.
        scale: how much of everything.
        methods: what is compared.
        seed: of training and of pictures.
        sampling: of pictures.
    """

    studio: Studio
    store: Store
    scale: Scale
    methods: Sequence[Method]
    seed: int = 0
    sampling: SampleSettings = SAMPLING

    @property
    def concepts(self) -> list[Concept]:
        """The concepts of the scale."""
        return [CONCEPTS[name] for name in self.scale.concepts]

    @property
    def tuning_concepts(self) -> list[Concept]:
        """The tuning concepts of the scale."""
        return [TUNING_CONCEPTS[name] for name in self.scale.ablation_concepts]

    @property
    def seeds(self) -> range:
        """Seeds of scored pictures."""
        return self.first_seeds(self.scale.seeds)

    def first_seeds(self, count: int) -> range:
        """So many seeds."""
        return range(self.seed, self.seed + count)

    @property
    def training_seeds(self) -> range:
        """Seeds of training; the first is the one of every study that trains once."""
        return self.first_seeds(self.scale.training_seeds)

    def steps(self, method: Method) -> int:
        """Training steps of a method at this scale."""
        return min(method.steps, self.scale.max_steps)

    def cell(self, study: str, method: str, concept: str, compute: Callable[[], Result], *depends: object) -> Cell:
        """A cell that is kept under everything its result depends on.

        Args:
            study, method, concept: what it is about.
            compute: finds the result.
            depends: what it depends on beside the base model, its sampling and the seed: concepts, `amounts`, `source`.
        """
        return Cell(study, method, concept, (self.studio.base_identity, self.sampling, self.seed, *depends), compute)

    def amounts(self, *names: str) -> dict[str, Any]:
        """Fields of the scale by name, for `cell`."""
        return {name: getattr(self.scale, name) for name in names}

    def source(
        self, method: Method, subjects: Sequence[Subject], run_steps: int, step: int, seed: int | None = None
    ) -> tuple[object, ...]:
        """A snapshot of a training run of so many steps, and how it is applied, for `cell`."""
        return self._run_name(method, subjects, run_steps, seed), step, method.application

    def own_source(self, method: Method, concepts: Sequence[Concept], seed: int | None = None) -> tuple[object, ...]:
        """What `learned` gives, for `cell`."""
        runs = self._own_runs(method, concepts)
        return tuple(self.source(method, subjects, steps, steps, seed) for subjects, steps in runs)

    def learned(
        self, method: Method, concepts: Sequence[Concept], seed: int | None = None
    ) -> tuple[list[Learned], float]:
        """What a method learned of concepts after its own steps for each, and the seconds it took."""
        runs = [
            self.train(method, subjects, [steps], seed)[steps] for subjects, steps in self._own_runs(method, concepts)
        ]
        return [learned for learned, _ in runs], sum(seconds for _, seconds in runs)

    def train(
        self, method: Method, subjects: Sequence[Subject], steps: Collection[int], seed: int | None = None
    ) -> Mapping[int, tuple[Learned, float]]:
        """Snapshots and seconds of training by step, from the cache if they are there; `seed` is of training alone."""
        folder = self.store.folder / "learned" / self._run_name(method, subjects, max(steps), seed)
        if not all(_times(folder, step).exists() for step in steps):
            for snapshot in method.train(self.studio, subjects, steps, self.seed if seed is None else seed):
                write_atomic(folder / f"{snapshot.step}.safetensors", snapshot.learned.data)
                write_atomic(_times(folder, snapshot.step), json.dumps({"seconds": snapshot.seconds}).encode())
        found = {}
        for step in steps:
            tensors = safetensors.torch.load_file(folder / f"{step}.safetensors")
            seconds = float(json.loads(_times(folder, step).read_text())["seconds"])
            found[step] = Learned(tuple(subjects), tensors), seconds
        return found

    def own_runs(self, method: Method, subjects: tuple[Subject, ...]) -> list[tuple[tuple[Subject, ...], int]]:
        """Subjects and steps of the runs that learn subjects: a joint method has one, as long as theirs together."""
        steps = self.steps(method)
        return [(subjects, steps * len(subjects))] if method.joint else [((s,), steps) for s in subjects]

    def _own_runs(self, method: Method, concepts: Sequence[Concept]) -> list[tuple[tuple[Subject, ...], int]]:
        return self.own_runs(method, subjects_of(concepts))

    def _run_name(self, method: Method, subjects: Sequence[Subject], steps: int, seed: int | None) -> str:
        """Of a training run of so many steps: tells all that its snapshots depend on."""
        subject_names, seed = "+".join(s.name for s in subjects), self.seed if seed is None else seed
        key = digest(self.studio.identity, method.run_settings(steps), seed, [s.identity for s in subjects])
        return f"{method.key}-{subject_names}-{key}"


def bench_for(folder: Path, scale: Scale, methods: Sequence[Method], seed: int, bf16: bool = False) -> Bench:
    """A bench with TinyWorld in it; with `bf16` pictures are drawn in mixed precision."""
    base = with_rare_words(load_model("tinyworld"))
    studio = Studio(base, folder / "studio", some_captions(), scale.class_pictures)
    sampling = replace(SAMPLING, steps=scale.draw_steps, compute=torch.bfloat16 if bf16 else None)
    return Bench(studio, Store(folder), scale, methods, seed, sampling)


def _times(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"
