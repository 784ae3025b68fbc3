"""``infusion lab --tune``: every method's settings, chosen on the tuning concepts by one tool on one budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna

from infusion_cli.console import progress, say
from infusion_core.atomic import write_atomic
from infusion_core.embedded.evaluate import ERRORS
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS, Concept
from infusion_core.errors import InfusionError
from infusion_core.training.engine import DivergedError

from .bench import FULL, QUICK, Bench, bench_for
from .measures import CONCEPT, HEADLINE, drawn_and_scored, error_rows
from .methods.method import Method
from .methods.registry import TUNABLE, TUNED, best_of, tuning
from .methods.space import MOST_STEPS, Choice, Knob, Space, Value
from .store import Cell, Result, Row, means
from .tinyworld import subjects_of

STUDY = "tune"
DIVERGED = "diverged"  # the one measure of a training whose numbers were no longer finite
AT_RANDOM = 8  # trials before the sampler learns from them
HALVING = 2  # of the trials that have learned as many concepts, the better half goes on


@dataclass(frozen=True)
class Budget:
    """What is spent on tuning, the same for every method.

    Attributes:
        trials: settings tried per method.
        concepts: names of tuning concepts.
        most_steps: of training, per concept.
        prompts, seeds: of scored pictures, per concept.
        draw_steps: of a picture.
    """

    trials: int = 30
    concepts: tuple[str, ...] = tuple(TUNING_CONCEPTS)
    most_steps: int = MOST_STEPS
    prompts: int = 6
    seeds: int = 2
    draw_steps: int = 15


BUDGETS = {"full": Budget(), "quick": Budget(3, ("acorn", "crate"), 100, 3, 1)}


def run_tune(
    out: Path, quick: bool, concepts: Sequence[str], methods: Sequence[str], seed: int, bf16: bool = False,
    trials: int = 0,
) -> None:  # fmt: skip
    """Try settings, and write what was found to ``tuned.json`` in `out`; the lab itself reads its own copy.

    Every trial follows from those before it and from the seed alone, and every training run that was scored is kept in
    `out`: a stopped run goes on where it stopped, and a run of more trials begins with those of the shorter one.

    Args:
        out: folder.
        quick: two concepts, 100 steps at most and few trials.
        concepts: names of tuning concepts; by default as `quick` says.
        methods: keys of methods; all by default. What is known of the others stays.
        seed: of everything.
        bf16: pictures are drawn in mixed precision.
        trials: per method; 0 for as many as `quick` says.

    Raises:
        InfusionError: an unknown concept or method, or the disk is full.
    """
    _require(concepts, TUNING_CONCEPTS)
    _require(methods, TUNABLE)
    budget = BUDGETS["quick" if quick else "full"]
    budget = replace(budget, trials=trials or budget.trials, concepts=tuple(concepts) or budget.concepts)
    scale = replace(QUICK if quick else FULL, draw_steps=budget.draw_steps)
    bench = bench_for(out / STUDY, scale, [], seed, bf16)
    keys = [key for key in TUNABLE if key in (methods or TUNABLE)]
    with progress("tuning", budget.trials * len(keys)) as advance:
        for key in keys:
            study = _study(seed)
            study.enqueue_trial(first_settings(TUNABLE[key].method, TUNABLE[key].space, budget.most_steps))
            for number in range(1, budget.trials + 1):
                advance(note=f"{key}, trial {number}", steps=0)
                study.optimize(partial(_trial, bench, key, budget), n_trials=1)
                advance()
            _write(out / TUNED.name, key, bench, budget, study.trials)
    say(f"Wrote {out / TUNED.name}")


def first_settings(method: Method, space: Space, most_steps: int) -> dict[str, Value]:
    """A method's own settings, which are tried first, with no more steps than tuning allows."""
    own: dict[str, Value] = {knob.name: method.knobs[knob.name] for knob in space}
    own["steps"] = min(int(own["steps"]), most_steps)
    return {knob.name: own[knob.name] for knob in space if knob.matters(own)}


def choose(trial: optuna.Trial, space: Space, most_steps: int) -> dict[str, Value]:
    """Settings of one trial."""
    chosen: dict[str, Value] = {}
    for knob in space:
        if knob.matters(chosen):
            chosen[knob.name] = _suggested(trial, knob, most_steps if knob.name == "steps" else math.inf)
    return chosen


def _suggested(trial: optuna.Trial, knob: Knob, most: float) -> Value:
    values = knob.values
    if isinstance(values, Choice):
        return cast(Value, trial.suggest_categorical(knob.name, values.options))
    low, high = values.low, min(values.high, most)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(knob.name, low, high, log=True)
    return trial.suggest_float(knob.name, low, high, log=True)


def _study(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING)
    return optuna.create_study(sampler=sampler, pruner=pruner)


def _trial(bench: Bench, key: str, budget: Budget, trial: optuna.Trial) -> float:
    """The headline of one choice of settings: its mean over the concepts, learned one after another.

    Raises:
        optuna.TrialPruned: it is worse than others after as many concepts, or training diverged.
    """
    method = TUNABLE[key].method.changed(**choose(trial, TUNABLE[key].space, budget.most_steps))
    rows: list[Row] = []
    for number, name in enumerate(budget.concepts, start=1):
        rows += bench.store.result(_cell(bench, method, TUNING_CONCEPTS[name], budget)).rows
        found = means(rows, lambda row: row.measure)
        diverged = DIVERGED in found
        trial.set_user_attr("found", {"concepts": number, **found})
        trial.report(math.inf if diverged else found[HEADLINE], number)
        if diverged or (number < len(budget.concepts) and trial.should_prune()):
            raise optuna.TrialPruned
    return found[HEADLINE]


def _cell(bench: Bench, method: Method, concept: Concept, budget: Budget) -> Cell:
    """Errors of one training run, which itself is not kept."""
    compute = partial(_measure, bench, method, concept, budget)
    source = bench.source(method, subjects_of([concept]), method.steps, method.steps)
    return bench.cell(STUDY, method.key, concept.name, compute, concept, budget.prompts, budget.seeds, source)


def _measure(bench: Bench, method: Method, concept: Concept, budget: Budget) -> Result:
    try:
        (run,) = method.train(bench.studio, subjects_of([concept]), [method.steps], bench.seed)
    except DivergedError:
        return Result([Row(STUDY, method.key, concept.name, method.steps, "", bench.seed, DIVERGED, 1.0)])
    customised = method.apply(bench.studio, [run.learned])
    scored = drawn_and_scored(customised, concept, budget.prompts, bench.first_seeds(budget.seeds), bench.sampling)
    return Result(error_rows(STUDY, method.key, concept, method.steps, scored))


def told(trials: Sequence[optuna.trial.FrozenTrial]) -> list[dict[str, Any]]:
    """The trials as they are kept: settings, mean errors, whether they were pruned, and of what they are the best."""
    lines: list[dict[str, Any]] = []
    for trial in trials:
        found = trial.user_attrs["found"]
        errors = {name: float(f"{found[name]:.5g}") for name in (*ERRORS, DIVERGED) if name in found}
        pruned = trial.state is not optuna.trial.TrialState.COMPLETE
        lines.append({"settings": trial.params, "concepts": found["concepts"], "pruned": pruned, **errors, "best": []})
    for name, error in (("headline", HEADLINE), ("likeness", CONCEPT)):
        best = best_of(lines, error)
        if best:
            best["best"].append(name)
    return lines


def _write(file: Path, key: str, bench: Bench, budget: Budget, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    """Write what was found of a method, beside what an earlier run (or else the lab's copy) has of the others."""
    methods: dict[str, Mapping[str, Any]] = tuning(file if file.exists() else TUNED)["methods"]
    facts = {
        **asdict(budget),
        "guidance": bench.sampling.guidance,
        "compute": str(bench.sampling.compute or "float32"),
        "seed": bench.seed,
        "model": bench.studio.base_identity,
        "optuna": optuna.__version__,
    }
    found = {**methods, key: {**facts, "trials": told(trials)}}
    ordered = {name: found[name] for name in TUNABLE if name in found}
    write_atomic(file, (json.dumps({"methods": ordered}, indent=1) + "\n").encode())


def _require(names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise InfusionError(f"nothing called {name!r} is tuned; choose of: {', '.join(known)}")
