"""What of a cluster each worker or replica holds, so that all of them find a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from infusion_cli.console import say

CPUS_EACH = 4  # of a worker without a GPU, where there are as many
Machine = tuple[int, int]  # its processors and GPUs


@dataclass(frozen=True)
class Share:
    """What each holds.

    Attributes:
        count: of those that hold it.
        cpus: processors, which are its threads.
        gpus: a whole one, or an even part.
    """

    count: int
    cpus: int
    gpus: float = 0.0


def share_of(machines: Sequence[Machine], wanted: int) -> Share:
    """The largest share of which as many as wanted find a place; fewer where there is none.

    Args:
        machines: that there are.
        wanted: how many; 0 for one per GPU, or one per four processors.
    """
    gpus, cpus = sum(gpu for _, gpu in machines), sum(cpu for cpu, _ in machines)
    if gpus:
        count = max(1, min(wanted or gpus, sum(cpu for cpu, gpu in machines if gpu)))
        parts = (n for n in range(1, count + 1) if sum(min(cpu, gpu * n) for cpu, gpu in machines) >= count)
        return Share(count, 1, 1 / next(parts, 1))
    count = max(1, min(wanted or cpus // CPUS_EACH, cpus))
    threads = (n for n in range(cpus, 0, -1) if sum(cpu // n for cpu, _ in machines) >= count)
    return Share(count, next(threads, 1))


def share_of_cluster(wanted: int, given: str) -> Share:
    """`share_of` Ray's living machines; says where it is fewer than an option asked for.

    Args:
        wanted: how many.
        given: the option.
    """
    held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    share = share_of([(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in held], wanted)
    if wanted > share.count:
        say(f"Note: there is no place for {given} {wanted}; {share.count} start")
    return share


def free_places() -> tuple[float, float]:
    """Processors and GPUs of the cluster that nobody holds."""
    free = ray.available_resources()
    return free.get("CPU", 0.0), free.get("GPU", 0.0)


def say_what_is_missing(share: Share) -> None:
    """Say where others hold so much of the cluster that not all find a place at once."""
    cpus, gpus = free_places()
    if cpus < share.cpus * share.count or gpus < share.gpus * share.count:
        say(
            f"Note: {share.count} x {share.cpus} processors and {share.count} x {share.gpus:g} GPUs are wanted, "
            f"{cpus:g} and {gpus:g} are free; waiting until others give theirs back (Ctrl-C stops)"
        )
