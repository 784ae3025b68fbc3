"""Workers that Ray places, restarts and feeds: each holds one frozen base model and takes packs of concepts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError, printable

from .shares import Share, free_places, share_of_cluster
from .worker import Outcome, Task, train_pack, whoami

RETRIES = 3  # of a pack whose worker died
LOOK_EVERY = 0.5  # seconds between two looks at how far workers are
ANSWER_WITHIN = 10.0  # seconds, for a cluster
START_WITHIN = 600.0  # seconds, for a worker to find a place and load its model


class _Worker:
    """What is one actor: a base model that trains."""

    def __init__(self, model: str, config: Path | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model, self.step = load_model(model, config=config), 0

    def resolution(self) -> int:
        """Edge of the model's pictures, px."""
        return self.model.resolution

    def steps(self) -> int:
        """How many steps of its pack it has done."""
        return self.step

    def who(self) -> str:
        """Its process."""
        return whoami()

    def train(self, pack: Sequence[Task]) -> list[Outcome]:
        """Learn a pack."""
        self.step = 0
        return train_pack(self.model, pack, self._at)

    def _at(self, step: int) -> None:
        self.step = step


@dataclass
class Pool:
    """Workers.

    Attributes:
        workers: Ray's actors.
        share: what each holds.
    """

    workers: Sequence[Any]
    share: Share

    @property
    def resolution(self) -> int:
        """Edge of the model's pictures, px.

        Raises:
            InfusionError: the model cannot be loaded, or no worker has found a place.
        """
        asked = [worker.resolution.remote() for worker in self.workers]
        try:
            for first in ray.wait(asked, timeout=START_WITHIN)[0]:
                return int(ray.get(first))
        except RayError as error:
            raise InfusionError(f"the workers do not start: {reason_of(error)}") from error
        cpus, gpus = free_places()
        raise InfusionError(
            f"no worker has started in {START_WITHIN:g} s: each needs {self.share.cpus} processors and "
            f"{self.share.gpus:g} GPUs, free are {cpus:g} and {gpus:g}; stop what else "
            "runs there, or give other --workers"
        )

    def run(
        self, packs: Iterator[Sequence[Task]], begun: Callable[[Sequence[Task], str], None], at: Callable[[int], None]
    ) -> Iterator[list[Outcome]]:
        """Learn packs; those that are done come in any order.

        Args:
            packs: taken one by one, as workers come free.
            begun: called with a pack and the process that has it.
            at: called now and then with the steps of packs that are not done, all together.

        Raises:
            InfusionError: no worker is left.
        """
        free, busy = {worker.who.remote(): worker for worker in self.workers}, dict[Any, tuple[Any, Sequence[Task]]]()
        pack = next(packs, None)
        while busy or pack is not None:
            if not busy and not free:
                raise InfusionError("no worker is left; see Ray's logs, and give the same command again")
            done, _ = ray.wait([*busy, *(free if pack is not None else ())], timeout=LOOK_EVERY)
            for future in done:
                if future in busy:
                    worker, learned = busy.pop(future)
                    free[worker.who.remote()] = worker
                    yield _outcomes(future, learned)
                else:
                    worker = free.pop(future)
                    assert pack is not None
                    with suppress(RayError):  # it has ended for good; others go on
                        begun(pack, ray.get(future))
                        busy[worker.train.remote(pack)] = worker, pack
                        pack = next(packs, None)
            at(sum(_steps(worker) * len(pack) for worker, pack in busy.values()))


@contextmanager
def workers(model: str, config: Path | None, count: int, address: str) -> Iterator[Pool]:
    """Start workers, on this machine or on a cluster that is there; all of it ends with the block.

    Args:
        model, config: of the base model, see `load_model`; every machine must have it in that place.
        count: of workers; 0 for one per GPU, or one per four processors.
        address: of a cluster; empty for this machine alone.

    Raises:
        InfusionError: there is no such cluster.
    """
    with cluster(address):
        share = share_of_cluster(count, "--workers")
        actor = ray.remote(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=-1, max_task_retries=RETRIES,
            max_concurrency=2,  # so that one at work can say how far it is
        )(_Worker)  # fmt: skip
        yield Pool([actor.remote(model, config, share.cpus) for _ in range(share.count)], share)


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Ray, on this machine or on a cluster that is there, for as long as the block.

    Args:
        address: of a cluster; empty for this machine alone.

    Raises:
        InfusionError: there is no such cluster.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address:
            _reach(address)
            ray.init(address=address, **quiet)
        else:
            os.environ.pop("RAY_ADDRESS", None)
            ray.init(address="local", include_dashboard=False, **quiet)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        if address and _wants_token(error):
            raise InfusionError(
                f"the Ray cluster at {printable(address)} wants its token: put it into ~/.ray/auth_token, and set "
                "RAY_AUTH_MODE=token in the environment of this command (docs/cluster.md)"
            ) from error
        raise InfusionError(
            f"there is no Ray cluster at {printable(address)} ({reason_of(error)}); start one (docs/cluster.md), or "
            "leave --address out to use this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Knock at a cluster's door, since Ray itself waits for minutes.

    Raises:
        OSError, ValueError: nobody answers, or it is no address.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host or "127.0.0.1", int(port)), timeout=ANSWER_WITHIN).close()


def _wants_token(error: BaseException | None) -> bool:
    """Whether a cluster has turned away who has no token, or another; Ray says so in one of the errors' causes."""
    return error is not None and ("AuthToken" in str(error) or _wants_token(error.__cause__))


def _steps(worker: Any) -> int:
    """How far a worker is; 0 of one that has just died."""
    try:
        return int(ray.get(worker.steps.remote(), timeout=LOOK_EVERY))
    except RayError:
        return 0


def _outcomes(future: Any, pack: Sequence[Task]) -> list[Outcome]:
    """What a pack came to; where its workers died too often, that."""
    try:
        found: list[Outcome] = ray.get(future)
        return found
    except RayError as error:
        failed = [Outcome(task.name, why=f"its worker ended {RETRIES + 1} times: {reason_of(error)}") for task in pack]
        for outcome in failed:
            outcome.say(outcome.why)
        return failed


def reason_of(error: Exception) -> str:
    """The last line of what Ray says that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__, 300)
