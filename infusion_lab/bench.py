"""What every study of the lab works with: methods, concepts, how much of everything, and the cache of training runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from infusion_core.atomic import write_atomic
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.embedded.tinyworld import CONCEPTS, TUNING_CONCEPTS, Concept

from .methods.method import Learned, Method, Subject
from .methods.registry import subjects_of
from .store import Store, digest
from .studio import Studio


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        concepts: names of TinyWorld's concepts.
        prompts, seeds: of scored pictures, per concept.
        draw_steps: DDIM steps of a picture.
        max_steps: training stops there even if a recipe wants more.
        marks: steps at which the curves are measured.
        curve_concepts: how many concepts the curves take.
        class_pictures: of prior preservation, per class word.
        samples: pictures of a bare prompt, for diversity and the 2-Wasserstein distance.
        fisher_prompts, fisher_draws: of the latent Fisher divergence.
        groups: concepts that are put into one prompt.
        group_prompts: prompts per group.
        ablation_concepts: names of tuning concepts; what is learned from them may change Infusion's defaults.
        ablation_prompts: prompts per ablation and concept.
    """

    concepts: tuple[str, ...] = tuple(CONCEPTS)
    prompts: int = 25
    seeds: int = 5
    draw_steps: int = 25
    max_steps: int = 5000
    marks: tuple[int, ...] = (100, 400, 1000, 2000)
    curve_concepts: int = 3
    class_pictures: int = 200
    samples: int = 24
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
    ablation_concepts: tuple[str, ...] = tuple(TUNING_CONCEPTS)
    ablation_prompts: int = 10


QUICK = Scale(
    concepts=("ember", "wasp"),
    prompts=3,
    seeds=1,
    draw_steps=15,
    max_steps=100,
    marks=(50, 100),
    curve_concepts=1,
    class_pictures=16,
    samples=4,
    fisher_prompts=8,
    fisher_draws=16,
    groups=(("ember", "wasp"),),
    group_prompts=2,
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
    def seeds(self) -> range:
        """Seeds of scored pictures."""
        return range(self.seed, self.seed + self.scale.seeds)

    def steps(self, method: Method) -> int:
        """Training steps of a method at this scale."""
        return min(method.steps, self.scale.max_steps)

    def learned(self, method: Method, concepts: Sequence[Concept], step: int) -> tuple[list[Learned], float]:
        """What a method learned of concepts after `step` steps of each, and the seconds it took.

        A joint method learns them in one run of that many steps for every concept.
        """
        subjects = subjects_of(concepts)
        if method.joint:
            run = self.train(method, subjects, (step * len(subjects),))
            return [run[step * len(subjects)][0]], run[step * len(subjects)][1]
        runs = [self.train(method, (subject,), (step,))[step] for subject in subjects]
        return [learned for learned, _ in runs], sum(seconds for _, seconds in runs)

    def train(
        self, method: Method, subjects: tuple[Subject, ...], marks: Sequence[int]
    ) -> Mapping[int, tuple[Learned, float]]:
        """Snapshots and seconds of training at `marks`, from the cache if they are there."""
        names = "+".join(f"{s.name}-{s.mark}" for s in subjects)
        folder = self.store.folder / "learned" / f"{method.key}-{names}-{self._run_key(method, marks)}"
        if not all(_times(folder, step).exists() for step in marks):
            for snapshot in method.train(self.studio, subjects, marks, self.seed):
                write_atomic(folder / f"{snapshot.step}.safetensors", snapshot.learned.data)
                facts = {"seconds": snapshot.seconds, "loss": snapshot.loss}
                write_atomic(_times(folder, snapshot.step), json.dumps(facts).encode())
        found = {}
        for step in marks:
            tensors = safetensors.torch.load_file(folder / f"{step}.safetensors")
            found[step] = (Learned(subjects, tensors), float(json.loads(_times(folder, step).read_text())["seconds"]))
        return found

    def _run_key(self, method: Method, marks: Sequence[int]) -> str:
        """What the snapshots of a run depend on."""
        return digest((method.run_settings(max(marks)), self.seed, self.studio.class_pictures))


def bench_for(folder: Path, scale: Scale, methods: Sequence[Method], seed: int, bf16: bool = False) -> Bench:
    """A bench with TinyWorld in it; with `bf16` pictures are drawn in mixed precision."""
    folder = folder.with_name(f"{folder.name}-bf16") if bf16 else folder
    studio = Studio(load_model("tinyworld"), folder / "studio", scale.class_pictures)
    sampling = replace(SAMPLING, steps=scale.draw_steps, compute=torch.bfloat16 if bf16 else None)
    return Bench(studio, Store(folder), scale, methods, seed, sampling)


def _times(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"
