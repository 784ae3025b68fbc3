"""Methods that learn much in a few steps."""

from __future__ import annotations

from infusion_core.training.residual import ResidualSettings
from infusion_lab.methods.infusion import Infusion
from infusion_lab.methods.registry import PUBLISHED

STEPS = 8
FAST = {
    "dreambooth": 5e-4,
    "dreambooth-plain": 5e-4,
    "lora": 5e-3,
    "dco": 5e-3,
    "textual-inversion": 3e-2,
    "custom-diffusion": 1e-3,
    "perfusion": 0.1,
    "infusion": 0.02,
}


def method_of(key):
    if key == "infusion":
        return Infusion(ResidualSettings(learning_rate=FAST[key], batch_size=2))
    return PUBLISHED[key].method.changed(learning_rate=FAST[key], batch_size=2)
