"""What an early model's sampling run leaves for the late one's: projected queries and keys, call by call.

Whole attention maps are never kept. Queries are kept in the memory of the machine while they take less than a part of
what is free there, and in a file that the system removes by itself from then on: slower, not wrong.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from threading import Lock
from typing import IO

import comfy.model_management
import torch
from torch import Tensor

from ...infusion_core.errors import InfusionError

PART_OF_MEMORY = 0.25  # of what is free, for queries and keys
Slot = tuple[str, int]  # a site, and the number of a conditioning in the positive list


@dataclass(frozen=True)
class Spilled:
    """A tensor in a file."""

    file: IO[bytes]
    lock: Lock
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor."""
        with self.lock:  # of several GPUs each has a thread
            self.file.seek(self.start)
            data = bytearray(self.file.read(math.prod(self.shape) * self.dtype.itemsize))
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


Kept = Tensor | Spilled


@dataclass
class Call:
    """One prediction of the early model.

    Attributes:
        sigma: noise level.
        maps: per site and conditioning the query (R, heads, N, head width) and key (R, heads, L, head width) of each
            forward that ran it, in order.
    """

    sigma: float
    maps: dict[Slot, list[tuple[Kept, Kept]]] = field(default_factory=lambda: defaultdict(list))


class Record:
    """All predictions of a sampling run."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._free = int(PART_OF_MEMORY * comfy.model_management.get_free_memory(torch.device("cpu")))
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def begin(self, sigma: float) -> None:
        """A prediction begins."""
        self.calls.append(Call(sigma))

    def add(self, slot: Slot, query: Tensor, key: Tensor) -> None:
        """Keep what a site has projected in the prediction that is running."""
        self.calls[-1].maps[slot].append((self._kept(query), self._kept(key)))

    def find(self, index: int, sigma: float) -> Call | None:
        """The prediction that was made as the so-manieth, or else the one at the nearest noise level that was guided.

        Samplers that adapt their steps to the picture make other predictions in every run, and step caches leave some
        out.
        """
        same = self.calls[index : index + 1]
        if same and same[0].maps and math.isclose(same[0].sigma, sigma, rel_tol=1e-4):
            return same[0]
        guided = [call for call in self.calls if call.maps]
        return min(guided, key=lambda call: abs(math.log(max(call.sigma, 1e-6) / max(sigma, 1e-6))), default=None)

    def close(self) -> None:
        """Forget everything."""
        self.calls.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _kept(self, tensor: Tensor) -> Kept:
        tensor = tensor.detach().to("cpu", copy=True).contiguous()
        size = tensor.numel() * tensor.element_size()
        with self._lock:
            if size <= self._free:
                self._free -= size
                return tensor
            return self._spilled(tensor)

    def _spilled(self, tensor: Tensor) -> Spilled:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        try:
            start = self._file.seek(0, 2)
            self._file.write(tensor.view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise InfusionError(
                f"neither memory nor disk has room for the early model's attention ({error.strerror}); choose fewer "
                "layers or a smaller batch"
            ) from error
        return Spilled(self._file, self._lock, start, tensor.shape, tensor.dtype)


def read(kept: Kept, like: Tensor) -> Tensor:
    """What was kept, where and as a pass computes."""
    tensor = kept.read() if isinstance(kept, Spilled) else kept
    return tensor.to(like.device, like.dtype)


Take = Callable[[Slot, Hashable], tuple[Kept, Kept] | None]


def in_turn(call: Call) -> Take:
    """Gives what was kept of a slot, forward by forward, to each of those who ask for it.

    A late model runs a conditioning in as many forwards as the early one did, or several times as often: where concepts
    are at work, once as the base stream and once as the concept stream.
    """
    streams: dict[tuple[Slot, Hashable], Iterator[tuple[Kept, Kept]]] = {}

    def take(slot: Slot, who: Hashable) -> tuple[Kept, Kept] | None:
        stream = streams.setdefault((slot, who), cycle(call.maps.get(slot, ())))
        return next(stream, None)

    return take
