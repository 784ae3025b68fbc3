"""The base models of the embedded host's tests, small networks that judge, and runs that take no time."""

from dataclasses import replace

import pytest
from PIL import Image

from infusion_cli.train import run_train
from tests.embedded.conftest import sd1, sd1_folder, tinyworld
from tests.fuzz.crashing import toy_model, toy_request
from tests.lab.conftest import places

__all__ = ["places", "sd1", "sd1_folder", "tinyworld"]


@pytest.fixture
def toy_photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, colour in enumerate(("red", "teal", "gold")):
        Image.new("RGB", (4, 4), colour).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def toy_run(tmp_path, toy_photos):
    return toy_request(toy_photos, tmp_path / "out" / "cat.safetensors")


@pytest.fixture
def toy_ran(toy_run):
    run_train(toy_run, toy_model())
    return replace(toy_run, resume=True)
