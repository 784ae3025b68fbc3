"""TinyWorld with rare words, and what its studios hold."""

from __future__ import annotations

import pytest

from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import some_captions, subjects_of, with_rare_words
from tests.embedded.conftest import tinyworld

__all__ = ["tinyworld"]


@pytest.fixture(scope="session")
def rare(tinyworld):
    """TinyWorld's model that reads rare words."""
    return with_rare_words(tinyworld)


@pytest.fixture(scope="session")
def studio(rare, tmp_path_factory):
    return Studio(rare, tmp_path_factory.mktemp("studio"), some_captions()[:50], class_pictures=2)


@pytest.fixture(scope="session")
def subjects():
    return subjects_of([CONCEPTS["ember"]])
