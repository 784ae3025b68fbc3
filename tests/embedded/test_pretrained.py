"""Encoders that measures use: whole, and from safetensors alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from infusion_core.errors import InfusionError
from infusion_core.metrics.pretrained import load_whole

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return tmp_path


def test_a_whole_folder_is_transformers_own(folder: Path) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = load_whole(ViTModel, folder).eval()(pixels).last_hidden_state
        own = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(pixels).last_hidden_state
    assert torch.equal(ours, own)


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    tensors = load_file(folder / FILE)
    gone = next(name for name in tensors if "query.weight" in name or "q_proj.weight" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / FILE, {"format": "pt"})
    with pytest.raises(InfusionError, match=r"lack 1 tensors, the first is .*(query|q_proj)\.weight"):
        load_whole(ViTModel, folder)


def test_a_pickle_is_not_opened(folder: Path) -> None:
    torch.save(load_file(folder / FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()
    with pytest.raises(InfusionError, match=r"only \.safetensors weights are read"):
        load_whole(ViTModel, folder)


def test_a_damaged_file_and_no_folder_are_refused(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])
    with pytest.raises(InfusionError, match=r"only \.safetensors weights are read"):
        load_whole(ViTModel, folder)
    with pytest.raises(InfusionError):
        load_whole(ViTModel, folder / "none")
