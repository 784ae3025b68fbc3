"""TinyWorld with rare words, and what its studios hold."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from infusion_core.embedded.tinyworld import CONCEPTS
from infusion_lab.studio import Studio
from infusion_lab.tinyworld import some_captions, subjects_of, with_rare_words
from tests.embedded.conftest import tinyworld
from tests.embedded.factories import save_model

__all__ = ["tinyworld"]

# Of the dataset in `places`.
PROMPTS = """Classes

subject_name,class
dog2,dog
fancy_boot,boot
gone,toy

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on the beach'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a hat'.format(unique_token, class_token)
]
"""


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


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A model of Stable Diffusion's structure, CLIP, DINO and DreamBooth's dataset, all small and made up."""
    folder = tmp_path_factory.mktemp("real")
    model = save_model(folder / "model", context=32, channels=(8, 8, 8), sample_size=8)
    (model / "infusion.json").write_text(json.dumps({"steps": 2, "guidance": 3.0}))
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    projected = {**small, "projection_dim": 8}
    text = {**projected, "vocab_size": 700, "bos_token_id": 0, "eos_token_id": 2}
    vision = {**projected, "image_size": 224, "patch_size": 112}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    for file in list((model / "tokenizer").iterdir()):
        (folder / "clip" / file.name).write_bytes(file.read_bytes())
    ViTModel(ViTConfig(**small, image_size=224, patch_size=112)).save_pretrained(folder / "dino")
    data = folder / "dataset"
    for index, name in enumerate(("dog2", "fancy_boot")):
        (data / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 32), (80 * i, 90, 60 * index)).save(data / name / f"{i}.jpg")
    (data / "prompts_and_classes.txt").write_text(PROMPTS)
    return {"model": model, "clip": folder / "clip", "dino": folder / "dino", "dataset": data}
