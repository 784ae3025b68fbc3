"""Table 1 on DreamBooth's dataset, with randomly initialised models of Stable Diffusion's structure."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from infusion_core.errors import InfusionError
from infusion_lab.real import table1
from infusion_lab.real.formats import read_dataset
from infusion_lab.real.judges import Judges
from infusion_lab.real.page import strips_of
from infusion_lab.real.run import run_real
from infusion_lab.real.setup import Request, real_lab
from infusion_lab.store import Cell, Result

from .asking import ask_lab
from .conftest import PROMPTS


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
        "apt", "infusion",
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


@pytest.fixture
def hps(places, tmp_path):
    """A network that prefers, without a tokenizer."""
    torch.manual_seed(5)
    CLIPModel(CLIPModel.from_pretrained(places["clip"]).config).save_pretrained(tmp_path / "hps")
    return tmp_path / "hps"


def test_preference_is_the_cosine_of_a_picture_and_its_prompt(places, hps, tmp_path):
    folders = str(places["model"]), places["dataset"], places["clip"], places["dino"], tmp_path / "out"
    request = Request(*folders, rare_word="x", count=2, limit=1, only=("table1",), hps=hps)
    run_real(request, ["infusion"])
    rows = list(csv.DictReader((request.out / "results.csv").open()))
    (found,) = (float(r["value"]) for r in rows if r["measure"] == "hps")
    lab = real_lab(request, ["infusion"])
    (subject, *_), (prompt, *_) = lab.data.subjects, ("a {} wearing a hat",)
    (method,), bench = lab.bench.methods, lab.bench
    customised = method.apply(bench.studio, [bench.train(method, [subject], [1])[1][0]])
    pictures = customised.draw(prompt.format("dog"), 2, 0, bench.sampling)
    network = CLIPModel.from_pretrained(hps).eval()
    tokens = CLIPTokenizer.from_pretrained(places["clip"])([prompt.format("dog")], return_tensors="pt")
    pixels = CLIPImageProcessorPil()(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        told = network(**tokens, pixel_values=pixels)
    assert found == pytest.approx((told.image_embeds @ told.text_embeds.T).mean().item(), abs=2e-3)
    with_other = {cell.name for cell in table1.cells(lab)}
    assert with_other.isdisjoint(cell.name for cell in table1.cells(real_lab(replace(request, hps=None), ["infusion"])))
    assert "HPSv2" in (request.out / "index.html").read_text()


def test_a_folder_that_does_not_load_is_named_by_its_option(places, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(InfusionError, match="cannot load --hps"):
        _ = Judges(places["clip"], places["dino"], cpu, tmp_path).networks
    with pytest.raises(InfusionError, match="cannot load --clip"):
        _ = Judges(tmp_path, places["dino"], cpu).networks
    with pytest.raises(InfusionError, match="cannot load --dino"):
        _ = Judges(places["clip"], tmp_path, cpu).networks


def test_options_reach_the_request(monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr("infusion_lab.real.run.run_real", lambda *told: taken.append(told))
    given = {
        "dataset": Path("data"), "clip": Path("clip"), "dino": Path("dino"), "config": Path("config"),
        "count": 2, "limit": 3, "seed": 4, "pictures": Path("pictures"), "figure_concepts": 5, "figure_prompts": 6,
        "samples": 7, "pairs": 9, "hps": Path("hps"),
    }  # fmt: skip
    asked = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    more = ["--token=x", "--second-token=y", "--at-steps=8", "--at-steps=9", "--only=drift", "--method=lora"]
    real = (f"--out={tmp_path}", "--model=sd")
    ask_lab(*real, *asked, *more)
    ask_lab(*real, "--dataset=data", "--clip=clip", "--dino=dino")
    assert taken == [
        (Request(model="sd", out=tmp_path, rare_word="x", second_word="y", steps=(8, 9), only=("drift",), **given),
         ["lora"]),
        (Request("sd", Path("data"), Path("clip"), Path("dino"), tmp_path), []),
    ]  # fmt: skip
    with pytest.raises(InfusionError, match="--model needs --dataset, --clip and --dino"):
        ask_lab(*real, "--dataset=data")


def test_the_page_has_pictures_of_the_first_subjects_alone():
    def found(study, concept):
        return Cell(study, "lora", concept, (), list), Result([], {}, {"a": Image.new("RGB", (8, 8))})

    results = [found("table1", f"{i}") for i in range(12)] + [found("several", "pair")]
    assert [s.name for s in strips_of(results, "table1", {"lora": "LoRA"})] == [f"{i}: LoRA" for i in range(10)]
    assert [s.name for s in strips_of(results, "several", {})] == ["pair: lora"]
