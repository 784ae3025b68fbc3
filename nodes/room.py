"""Room for training: how much it will take, said before the first step, and what is in its way unloaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..infusion_core.training.engine import NEEDS_LESS, Trainer
from ..infusion_core.training.footprint import GB, footprint
from .host.denoiser import HostDenoiser
from .host.page import node, tell, warn


def make_room(denoiser: HostDenoiser, trainer: Trainer[Any], trained: Sequence[Any] = ()) -> None:
    """Say what training will take, and give it the memory that there is.

    Args:
        denoiser: what is trained on.
        trainer: about to run; a LoRA is installed.
        trained: the host's patchers that are trained, beside the network; all others leave the device.
    """
    found = footprint(trainer, denoiser, denoiser.weights)
    denoiser.begin(0 if found is None else found.beside, trained)
    if found is None:
        return
    said = found.told()
    logging.info("Infusion: %s", said)
    tell(said)
    free, elsewhere = denoiser.free, denoiser.elsewhere
    warning = None if free is None else found.warning(free)
    if warning is None and free is not None and elsewhere > 0:
        warning = (
            f"{elsewhere / GB:.2f} GB of the model stay in main memory while it is trained on, which takes longer. "
            f"{NEEDS_LESS}"
        )
    if warning is not None:
        logging.warning("Infusion: %s", warning)
        warn(node(), warning)
