"""What concepts that share a run take against runs of their own: a step on TinyWorld, in turns, in one process.

    python benchmarks/together.py                       # needs the extra "standalone"
    OMP_NUM_THREADS=1 python benchmarks/together.py --concepts 8

The last line is one JSON object: the ratio of a shared step to as many steps alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

import torch
from turns import take_turns

from infusion_core.embedded.model import load_model
from infusion_core.embedded.tasks import trainer_for
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.training.joint import joint_trainer
from infusion_core.training.residual import ResidualObjective, ResidualSettings


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--concepts", type=int, default=8)
    options.add_argument("--repeats", type=int, default=10, help="steps that are timed")
    args = options.parse_args(arguments)
    model, settings = load_model("tinyworld"), ResidualSettings(steps=10**6, snapshot_every=10**6)

    def objectives(count: int) -> list[ResidualObjective]:
        chosen = islice(cycle(CONCEPTS.values()), count)
        made = [trainer_for(model, training_images(c), c.shape, settings).objective for c in chosen]
        return [one for one in made if isinstance(one, ResidualObjective)]

    runs = {"alone": joint_trainer(objectives(1)).run(), "together": joint_trainer(objectives(args.concepts)).run()}
    seconds = take_turns({name: partial(next, run) for name, run in runs.items()}, args.repeats)
    for name, took in seconds.items():
        print(f"{name:>10}  {took:7.3f} s/step")
    ratio = seconds["together"] / (args.concepts * seconds["alone"])
    print(json.dumps({"together": round(ratio, 4), "concepts": args.concepts, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
