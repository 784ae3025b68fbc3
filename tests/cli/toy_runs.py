"""What the tests of training runs share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infusion_cli.train import run_train
from infusion_core.errors import InfusionError
from tests.fuzz.crashing import toy_model

ROOT = Path(__file__).parents[2]


def refusal(request, model=None):
    with pytest.raises(InfusionError) as refused:
        run_train(request, model or toy_model())
    return str(refused.value)


def setting(name, value):
    return lambda request: replace(request, settings=replace(request.settings, **{name: value}))
