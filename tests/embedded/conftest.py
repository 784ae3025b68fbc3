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


@pytest.fixture(scope="session")
def sharp(tmp_path_factory) -> EmbeddedModel:
    """A small model of SD1's structure whose attention maps are not even."""
    made = load_model(str(save_model(tmp_path_factory.mktemp("models") / "sharp", "sd1", 768)), "cpu")
    for name, module in made.denoiser.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            module.weight.data *= 4
    return made
