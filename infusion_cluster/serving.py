"""What the command `serve` does: replicas under Ray Serve until it is told to stop."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from infusion_cli.console import Interrupt, say
from infusion_core.errors import InfusionError
from infusion_core.library import ConceptLibrary

from .asked import LIMITS, Limits
from .pool import cluster, reason_of
from .replica import CONCEPTS, DRAW, HEALTH, Replica, Service
from .shares import say_what_is_missing, share_of_cluster

APP = "infusion"
SPARE = 32  # requests beyond the limit that a replica takes on, so that it can say why it turns them away
BURST = 1000  # requests that Ray itself holds until a replica has looked at them; more get its own words
FINISH_WITHIN = 60.0  # seconds, for pictures that are begun when the server is stopped, and for what has no place yet
LOOK_EVERY = 0.2  # seconds between two looks at whether it is to stop


@dataclass(frozen=True)
class ServeRequest:
    """What `infusion serve` was asked for.

    Attributes:
        concepts: folder of concept files.
        model, config: the base model.
        host, port: where it listens.
        address: of a Ray cluster; empty for this machine.
        replicas: how many; 0 for one per GPU, or one per four processors.
        batch: pictures per pass at most.
        wait: seconds that a picture waits for others to share its pass.
        limits: of requests.
        sampling: fields of `SampleSettings`; None leaves the model's own.
    """

    concepts: Path
    model: str
    config: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    address: str = ""
    replicas: int = 0
    batch: int = 8
    wait: float = 0.02
    limits: Limits = LIMITS
    sampling: Mapping[str, Any] = field(default_factory=dict)


def run_serve(request: ServeRequest) -> None:
    """Serve pictures over HTTP until Ctrl-C or SIGTERM; those that are begun then are finished.

    Raises:
        InfusionError: the concepts, the model, the port or the cluster cannot be used.
    """
    library, refused = ConceptLibrary.read(request.concepts)
    _check_free(request)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with Interrupt() as stop, cluster(request.address):
        try:
            handle = _started(request, library)
            while not stop.asked and not _is_there():
                time.sleep(LOOK_EVERY)
            if stop.asked:
                say("stopped before it had started")
                if request.address:  # else it ends with Ray
                    _take_back(request)
                return
            why, unfit, count = handle.told.remote().result()
        except (RayError, RuntimeError) as error:
            raise InfusionError(f"the server does not start: {reason_of(error)}; see Ray's logs") from error
        if why:
            raise InfusionError(why)
        for sentence in (*refused, *unfit):
            say(sentence)
        say(f"{count} concepts, {library.bytes:,} bytes; http://{request.host}:{request.port}: POST {DRAW}, "
            f"GET {HEALTH}, GET {CONCEPTS}; Ctrl-C stops")  # fmt: skip
        while not stop.asked:
            time.sleep(LOOK_EVERY)
        say("stopping, once the pictures that are begun are done")
        _take_back(request)


def _started(request: ServeRequest, library: ConceptLibrary) -> Any:
    """A handle of replicas that may still wait for a place, or load their model."""
    share = share_of_cluster(request.replicas, "--replicas")
    say_what_is_missing(share)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    limits = request.limits
    service = Service(
        request.model, request.config, share.cpus, request.batch, request.wait, limits, dict(request.sampling)
    )
    deployment = serve.deployment(
        Replica, name=APP, num_replicas=share.count, max_ongoing_requests=limits.waiting + SPARE,
        max_queued_requests=BURST, graceful_shutdown_timeout_s=FINISH_WITHIN,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus}, logging_config=quiet,
    )  # fmt: skip
    serve.start(http_options={"host": request.host, "port": request.port}, logging_config=quiet)
    target = serve.RunTarget(deployment.bind(service, ray.put(library)), name=APP, route_prefix="/")
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    return handle


def _is_there() -> bool:
    """Whether all replicas are there; raises RuntimeError: they cannot be."""
    app = serve.status().applications.get(APP)
    if app is None or app.status == ApplicationStatus.DEPLOY_FAILED:
        raise RuntimeError(app.message if app else "somebody else has deleted it")
    return bool(app.status == ApplicationStatus.RUNNING)


def _take_back(request: ServeRequest) -> None:
    """End the replicas, and on somebody's cluster Ray Serve too, unless something else is served there."""
    serve.delete(APP, _blocking=False)  # it would give up after a minute
    while APP in serve.status().applications:
        time.sleep(LOOK_EVERY)
    if request.address and not serve.status().applications:
        serve.shutdown()


def _check_free(request: ServeRequest) -> None:
    """Raises InfusionError: it cannot be listened at that address."""
    try:
        family = socket.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as knock:
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            knock.bind((request.host, request.port))
    except (OSError, OverflowError, UnicodeError) as error:  # the last for what cannot be a host's name
        reason = getattr(error, "strerror", None) or error
        raise InfusionError(
            f"cannot listen at {request.host}:{request.port}: {reason}; choose another --host or --port"
        ) from error
