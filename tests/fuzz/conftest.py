"""Every fuzz target in two sizes: a few fixed examples in `make test`, thousands from a printed seed in `make fuzz`."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

QUICK = 40  # examples of each target in the suite, the same at every run
COUNT = "FUZZ_EXAMPLES"
ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile("quick", max_examples=QUICK, derandomize=True, **ALWAYS)
settings.register_profile("fuzz", max_examples=int(os.environ.get(COUNT, QUICK)), **ALWAYS)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("fuzz" if COUNT in os.environ else "quick")


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("--hypothesis-seed")
    return f"fuzz: {os.environ.get(COUNT, QUICK)} examples of each target, --hypothesis-seed={seed}"
