"""How long methods train on TinyWorld by the recipes that the lab's study of fidelity scores, measured in one run.

    python benchmarks/likeness.py                       # needs the extra "lab"

Each method trains a few steps by its own recipe, in turns, and its time per step is taken by the recipe's steps. The
last line is one JSON object of ratios: Infusion's training time over that of each baseline's recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from infusion_core.embedded.model import load_model
from infusion_core.embedded.tinyworld import TUNING_CONCEPTS
from infusion_lab.methods.method import Method
from infusion_lab.methods.registry import all_methods
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import some_captions, subjects_of, with_rare_words

OURS = "infusion"
MOST_STEPS = 5000  # of a recipe
DEFAULT = [OURS, "infusion-small", "lora", "dreambooth-plain", "dreambooth-plain-likeness"]


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--method", nargs="*", default=DEFAULT)
    options.add_argument("--steps", type=int, default=10, help="that are timed")
    options.add_argument("--repeats", type=int, default=3)
    args = options.parse_args(arguments)
    methods = {m.key: m for m in all_methods(MOST_STEPS) if m.key in args.method}
    subjects = subjects_of([next(iter(TUNING_CONCEPTS.values()))])
    with TemporaryDirectory() as folder:
        studio = Studio(with_rare_words(load_model("tinyworld")), Path(folder), some_captions(), 8)

        def seconds(method: Method) -> float:
            """Of a step, without what comes before the first."""
            (snapshot,) = method.train(studio, subjects, [args.steps])
            return snapshot.seconds / args.steps

        turns = [{key: seconds(method) for key, method in methods.items()} for _ in range(args.repeats)]
    step = {key: statistics.median(turn[key] for turn in turns) for key in methods}
    whole = {key: step[key] * method.steps for key, method in methods.items()}
    for key, method in methods.items():
        print(f"{key:>20}  {step[key]:7.3f} s/step  x {method.steps:5d} steps = {whole[key]:7.1f} s")
    print(json.dumps({key: round(whole[OURS] / seconds, 4) for key, seconds in whole.items() if key != OURS}))


if __name__ == "__main__":
    main()
