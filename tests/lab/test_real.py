"""Table 1 on DreamBooth's dataset, with randomly initialised models of Stable Diffusion's structure."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from infusion_core.errors import InfusionError
from infusion_lab.dataset import read_dataset
from infusion_lab.judges import Judges
from infusion_lab.real import Request, run_real
from tests.embedded.factories import save_model

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


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    model = save_model(folder / "model", context=32, channels=(8, 8, 8), sample_size=4)
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


def test_the_dataset_is_read_as_published(places):
    data = read_dataset(places["dataset"], "sks")
    assert [(s.name, s.word, len(s.photos), s.rare_word) for s in data.subjects] == [
        ("dog2", "dog", 2, "sks"),
        ("fancy_boot", "boot", 2, "sks"),
    ]
    assert data.prompts(data.subjects[0]) == ("a {} wearing a hat",)
    assert data.prompts(data.subjects[1]) == ("a {} on the beach", "a red {}")
    assert "a red dog" in data.captions


def test_a_folder_that_is_not_the_dataset_is_refused(tmp_path):
    with pytest.raises(InfusionError, match="DreamBooth's repository"):
        read_dataset(tmp_path, "sks")
    (tmp_path / "prompts_and_classes.txt").write_text(PROMPTS)
    with pytest.raises(InfusionError, match="no subject with photos"):
        read_dataset(tmp_path, "sks")


def test_every_method_runs_on_stable_diffusions_structure(places, tmp_path, capsys):
    request = Request(str(places["model"]), places["dataset"], places["clip"], places["dino"], tmp_path,
                      rare_word="x", count=2, limit=1)  # fmt: skip
    run_real(request)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {r["method"] for r in rows} == {
        "dreambooth", "dreambooth-plain", "lora", "dco", "textual-inversion", "custom-diffusion", "perfusion",
        "infusion",
    }  # fmt: skip
    assert {r["measure"] for r in rows} == {"clip_t", "clip_i", "dino", "diversity", "bytes"}
    assert all(abs(float(r["value"])) <= 1 + 1e-6 for r in rows if r["measure"] != "bytes")
    assert "Table 1" in (tmp_path / "index.html").read_text()
    table = json.loads((tmp_path / "report.json").read_text())["table"]
    ours = next(line for line in table["lines"] if line[0] == "Infusion")
    paper = [cell for heading, cell in zip(table["header"], ours, strict=True) if heading == "paper's"]
    assert paper == ["0.267", "0.816", "0.697"]
    assert "paper's" in capsys.readouterr().out


def test_a_rare_word_of_several_tokens_is_refused(places, tmp_path):
    request = Request(
        str(places["model"]), places["dataset"], places["clip"], places["dino"], tmp_path, rare_word="sks"
    )
    with pytest.raises(InfusionError, match="3 tokens"):
        run_real(request)


def test_judges_are_the_networks_own_features(places):
    judges = Judges(places["clip"], places["dino"], torch.device("cpu"))
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    clip = CLIPModel.from_pretrained(places["clip"]).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    pixels = ((pictures * 255).round() / 255 - mean) / std
    with torch.no_grad():
        wanted = clip.visual_projection(clip.vision_model(pixels).pooler_output)
    assert np.allclose(judges.clip_images(pictures), wanted, atol=1e-4)
    assert judges.dino_images(pictures).shape == (2, 16)
    assert judges.clip_texts(["a dog", "a photo of a dog"]).shape == (2, 8)
