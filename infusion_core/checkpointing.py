"""Gradient checkpointing: blocks keep their input alone for the way back, and are run again there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Around = Callable[[], AbstractContextManager[Any]]


@contextmanager
def checkpointed(blocks: Iterable[nn.Module], around: Around = nullcontext) -> Iterator[None]:
    """Within the block, what `blocks` compute is not kept for backward. Results and gradients are the same bits.

    A block is run again with the very arguments it had. Those that are dicts are copied, for ComfyUI writes the name of
    each block into one dict, which by then holds the last one's.

    Args:
        blocks: modules, none inside another.
        around: makes the context that they are run in again, for what is taken out of them after a pass.
    """
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block, _ in before:
            block.forward = _again(block.forward, around)
        yield
    finally:
        for block, own in before:
            del block.forward
            if own is not None:
                block.forward = own


def _again(forward: Callable[..., Any], around: Around) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        named = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
        return checkpoint(
            partial(forward, **named), *args, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), around()),
        )  # fmt: skip

    return run
