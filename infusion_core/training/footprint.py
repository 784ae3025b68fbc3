"""How much memory training will take, known before the first step.

One step is walked through without computing anything: PyTorch's fake tensors have shapes and no numbers, so the network
runs at its full batch and resolution in no memory. What would be alive at once is counted, forward and back.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..attention import Plan
from ..denoiser import Conditioning, Denoiser
from ..noise import seeded
from .engine import NEEDS_LESS, Trainer, sum_of_means

MOMENTS = 2  # that AdamW keeps of every number
GB = 1e9


@dataclass(frozen=True)
class Footprint:
    """Memory of a training run, bytes.

    Attributes:
        weights: of the frozen network.
        step: most that is alive at once in a step beside them.
        learned: what stays between steps: the optimizer's moments, and gradients that are gathered over passes.
        batch: samples in a pass, for people.
    """

    weights: int
    step: int
    learned: int
    batch: int

    @property
    def beside(self) -> int:
        """All but the network."""
        return self.step + self.learned

    def told(self) -> str:
        """One line for people."""
        return (
            f"training takes about {(self.weights + self.beside) / GB:.2f} GB of memory: {self.weights / GB:.2f} the "
            f"model, {self.beside / GB:.2f} a step of batch {self.batch}"
        )

    def warning(self, free: int) -> str | None:
        """What to say where less than a step takes is free; None where it fits."""
        if self.beside <= free:
            return None
        return (
            f"a training step takes about {self.beside / GB:.2f} GB and {free / GB:.2f} GB are free beside the model. "
            f"{NEEDS_LESS}"
        )


def footprint(trainer: Trainer[Any], denoiser: Denoiser, weights: int) -> Footprint | None:
    """What a run will take; None where the network does something that cannot be walked through.

    Nothing is computed, and nothing that the trainer holds is changed.

    Args:
        trainer: about to run; a LoRA must be installed.
        denoiser: its network.
        weights: bytes of the network.
    """
    objective, settings = trainer.objective, trainer.settings
    tensors = [tensor for group in objective.groups() for tensor in group.tensors.values()]
    before = {name: tensor.clone() for name, tensor in objective.extra_state().items()}
    try:
        with _walked(denoiser), Live() as live:
            losses = objective.losses(seeded(0))
            torch.autograd.grad(sum_of_means(losses), tensors, allow_unused=True)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        logging.debug("Infusion: no estimate of memory: %s", error)
        return None
    finally:
        objective.restore(before)
    learned = sum(tensor.nbytes for tensor in tensors)
    kept = MOMENTS + (settings.accumulation > 1)
    return Footprint(weights, live.most, kept * learned, _samples(losses))


def _samples(losses: Mapping[str, Tensor]) -> int:
    return sum(len(loss) for name, loss in losses.items() if name.endswith("denoising"))


class Live(TorchDispatchMode):
    """Counts what is allocated and not yet freed within the block, of real and of fake tensors.

    Attributes:
        now: bytes that are alive.
        most: that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        for returned, output in zip(func._schema.returns, outputs, strict=False):
            if returned.alias_info is None:  # views have their memory already
                for tensor in tree_leaves(output):
                    if isinstance(tensor, Tensor):
                        self._allocated(tensor.untyped_storage())
        self.most = max(self.most, self.now + _scratch(func, args))
        return out

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _scratch(func: Any, args: Sequence[Any]) -> int:
    """Bytes an operator takes while it runs: a CPU's convolution copies its weights into an order of its own."""
    weight = {"aten::convolution": 1, "aten::convolution_backward": 2}.get(func._schema.name)
    if weight is None or args[weight].device.type != "cpu":
        return 0
    copied: int = args[weight].nbytes
    return copied


@contextmanager
def _walked(denoiser: Denoiser) -> Iterator[None]:
    """The network gives zeros, through which gradients flow as they would, and computes nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes its time to import

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    real = denoiser.predict

    def predict(noised: Tensor, sigma: Tensor, conditioning: Conditioning, plan: Plan) -> Tensor:
        with mode:
            said = real(noised, sigma, conditioning, plan)
        zeros: Tensor = _Zeros.apply(said, mode)  # type: ignore[no-untyped-call]
        return zeros

    vars(denoiser)["predict"] = predict
    try:
        yield
    finally:
        del vars(denoiser)["predict"]


class _Zeros(torch.autograd.Function):
    """Real zeros in the place of a fake tensor, so that what looks at a loss sees a number."""

    @staticmethod
    def forward(ctx: Any, fake: Tensor, mode: Any) -> Tensor:
        ctx.mode = mode
        return torch.zeros(fake.shape, dtype=fake.dtype, device=fake.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.mode.from_tensor(gradients[0]), None
