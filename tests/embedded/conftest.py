from __future__ import annotations

import pytest

from infusion_core.embedded.model import EmbeddedModel, load_model

from .factories import save_model


@pytest.fixture(scope="session")
def tinyworld() -> EmbeddedModel:
    return load_model("tinyworld")


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="session")
def sd1(sd1_folder) -> EmbeddedModel:
    return load_model(str(sd1_folder), "cpu")
