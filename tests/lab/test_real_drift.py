"""Figures 10 and 11 with a randomly initialised model: captioned pictures, both divergences, what is kept."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats

from infusion_core.embedded.judges import as_pixels
from infusion_core.embedded.tasks import draw
from infusion_core.errors import InfusionError
from infusion_core.metrics.coverage import coverage
from infusion_core.metrics.wasserstein import latent_wasserstein
from infusion_lab.methods.method import Customised, Subject
from infusion_lab.real import drift
from infusion_lab.real.captioned import Captioned, encoded, identity_of, read_captioned
from infusion_lab.real.figures import drift_figure, points
from infusion_lab.real.run import run_real
from infusion_lab.real.setup import Request, real_lab
from infusion_lab.store import Row


def picture(path, grey: int) -> None:
    Image.new("RGB", (24, 20), (grey, grey, grey)).save(path)


@pytest.fixture
def captioned(tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    for i, caption in enumerate(["a boat", "a red boat\nand more", "a dog on the beach", "the beach"]):
        picture(folder / f"{i}.png", 50 * i)
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def request_for(places, tmp_path, captioned):
    return Request(
        str(places["model"]), places["dataset"], places["clip"], places["dino"], tmp_path / "out", rare_word="x",
        pictures=captioned, figure_concepts=1, figure_prompts=1, samples=6, steps=(2, 1), only=("drift",),
    )  # fmt: skip


def read(folder, count=100, seed=0):
    return {(c.file.name, c.caption) for c in read_captioned(folder, count, seed)}


def test_captions_stand_beside_the_pictures(captioned):
    picture(captioned / "no caption.png", 9)
    picture(captioned / "blank.png", 9)
    (captioned / "blank.txt").write_text(" \n\n")
    (captioned / "alone.txt").write_text("no picture")
    (captioned / "notes.md").write_text("no picture")
    (captioned / "1.txt").write_bytes("\ufeff\n a red boat \nand more".encode())
    assert read(captioned) == {
        ("0.png", "a boat"), ("1.png", "a red boat"), ("2.png", "a dog on the beach"), ("3.png", "the beach")
    }  # fmt: skip
    two = [read_captioned(captioned, 2, seed) for seed in range(20)]
    assert {len(chosen) for chosen in two} == {2}
    assert len({chosen[0].file.name for chosen in two}) > 2
    assert read_captioned(captioned, 2, 3) == two[3]


def test_an_imagefolder_is_read_too(captioned):
    (captioned / "train").mkdir()
    picture(captioned / "train" / "a.png", 7)
    lines = [{"file_name": "train/a.png", "text": "a cup"}, {"file_name": "0.png", "caption": "a ship", "n": 1},
             {"file_name": "gone.png", "text": "gone"}]  # fmt: skip
    (captioned / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert read(captioned) == {("a.png", "a cup"), ("0.png", "a ship")}


@pytest.mark.parametrize("line", ["{}", "[]", "3", '{"file_name": "0.png"}', '{"file_name": "0.png", "text": 3}', "{"])
def test_a_line_that_is_no_picture_is_named(captioned, line):
    (captioned / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n' + line)
    with pytest.raises(InfusionError, match=r"line 2 of .*metadata.jsonl is not an object with file_name and text"):
        read_captioned(captioned, 9, 0)


def test_a_list_that_leaves_the_folder_is_refused(captioned):
    (captioned / "metadata.jsonl").write_text('{"file_name": "../0.png", "text": "a"}')
    with pytest.raises(InfusionError, match=r"names \.\./0\.png, which is outside"):
        read_captioned(captioned, 9, 0)


def test_a_folder_without_captioned_pictures_is_refused(tmp_path):
    with pytest.raises(InfusionError, match="there is no folder"):
        read_captioned(tmp_path / "gone", 9, 0)
    picture(tmp_path / "a.png", 9)
    with pytest.raises(InfusionError, match=r"holds no picture with a caption; put a \.txt"):
        read_captioned(tmp_path, 9, 0)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InfusionError, match=r"a\.txt cannot be read: it is not text in UTF-8"):
        read_captioned(tmp_path, 9, 0)


def test_a_damaged_picture_is_named(captioned, tinyworld):
    whole = (captioned / "0.png").read_bytes()
    (captioned / "0.png").write_bytes(whole[:40])
    with pytest.raises(InfusionError, match=r"0\.png: damaged"):
        encoded(tinyworld, read_captioned(captioned, 9, 0))


def test_identity_is_of_every_byte_and_caption(captioned):
    found = [identity_of(read_captioned(captioned, 9, 0))]
    (captioned / "0.txt").write_text("a ship")
    found.append(identity_of(read_captioned(captioned, 9, 0)))
    picture(captioned / "0.png", 1)
    found.append(identity_of(read_captioned(captioned, 9, 0)))
    assert len(set(found)) == 3


def test_captions_about_the_subject_are_left_out(captioned):
    pool = [Captioned(captioned, c) for c in ("a Dog", "a boat", "hotdogs", "an sks toy", "dog")]
    dog = Subject("dog2", "dog", (), "sks")
    assert drift.about_others(pool, dog) == [1, 2]
    with pytest.raises(InfusionError, match="every caption holds 'dog'"):
        drift.about_others(pool[:1], dog)


def test_classes_take_turns():
    subjects = [Subject(name, name[0], (), "sks") for name in ("a1", "a2", "a3", "b1", "b2", "c1")]
    assert [s.name for s in drift.varied(subjects)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_samples_are_spread_over_prompts_and_have_seeds_of_their_own(request_for):
    bench = real_lab(request_for).bench
    base, prompts = bench.studio.base, ["a dog", "the beach", "a photo"]
    latents = drift.drawn(Customised(base, ()), prompts, 5, 40, bench.sampling)
    assert len(latents) == 5
    for index, prompt in enumerate(["a dog", "a dog", "the beach", "the beach", "a photo"]):
        (expected,) = draw(base, prompt, (), 1, 40 + index, bench.sampling)
        (found,) = base.decode(latents[index : index + 1])
        difference = torch.tensor(list(found.tobytes())).int() - torch.tensor(list(expected.tobytes())).int()
        assert difference.abs().max() <= 1


def test_the_base_model_is_at_no_distance_from_itself(request_for):
    bench = real_lab(request_for).bench
    prompts = ["a dog wearing a hat", "a photo of a dog"]
    plain = drift.base_latents(bench, prompts, 6, 0)
    again = drift.drawn(Customised(bench.studio.base, ()), prompts, 6, 0, bench.sampling)
    assert torch.equal(plain, again)
    assert latent_wasserstein(plain, again) == pytest.approx(0, abs=1e-6)
    assert latent_wasserstein(plain, drift.base_latents(bench, prompts, 6, 6)) > 0.1


def test_the_figures_run_and_are_kept(request_for, monkeypatch, capsys):
    run_real(request_for, ["infusion", "lora"])
    out = request_for.out
    rows = list(csv.DictReader((out / "results.csv").open()))
    found = {(r["method"], r["measure"], int(r["step"])): float(r["value"]) for r in rows}
    of_class = ("w2_class", "frechet", "class_precision", "class_recall")
    assert set(found) == {
        *((m, measure, s) for m in ("infusion", "lora") for measure in ("fisher", *of_class) for s in (1, 2)),
        *(("base, other seeds", measure, s) for measure in of_class for s in (1, 2)),
    }
    assert [found["infusion", "fisher", s] for s in (1, 2)] == [0, 0]
    assert all(found["lora", "fisher", s] > 0 for s in (1, 2))
    assert all(value > 0 for (_, measure, _), value in found.items() if measure == "w2_class")
    assert found["base, other seeds", "w2_class", 1] > 10 * found["lora", "w2_class", 1]
    told = json.loads((out / "report.json").read_text())["drift"]
    assert told["fisher"]["infusion"] == {s: {"mean": 0.0, "low": 0.0, "high": 0.0} for s in ("1", "2")}
    assert {"figure10.png", "figure11.png"} <= {p.name for p in out.iterdir()}
    assert "Figures 10 and 11" in (out / "index.html").read_text()
    assert "Fisher" in capsys.readouterr().out
    for kept in ("drawn-*.safetensors", "seen-*.safetensors"):
        assert len(list(out.rglob(kept))) == 2  # the base model's, and its other seeds'
    for name in ("fisher_divergence", "latent_wasserstein", "draw_latents", "features"):
        monkeypatch.setattr(drift, name, None)
    before = (out / "results.csv").read_bytes()
    run_real(request_for, ["infusion", "lora"])
    assert (out / "results.csv").read_bytes() == before


def test_distances_of_pictures_are_of_what_dino_sees(request_for):
    lab = real_lab(request_for)
    base, prompts = lab.bench.studio.base, ["a dog wearing a hat"]
    latents = drift.base_latents(lab.bench, prompts, 9, 0)  # more than are decoded at once
    one = drift.base_features(lab, prompts, 9, 0)
    pictures = as_pixels(base.decode(latents), base.resolution)
    assert torch.allclose(one, lab.judges.dino_images(pictures), atol=1e-5)
    other = one + torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    found = drift.apart((latents, latents), (one, other))
    a, b = (seen.double().numpy() for seen in (one, other))
    covariances = [np.cov(seen.T, ddof=0) for seen in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    frechet = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    assert found["frechet"] == pytest.approx(frechet, rel=1e-3)
    assert found["w2_class"] == pytest.approx(0, abs=1e-6)
    assert (found["class_precision"], found["class_recall"]) == tuple(vars(coverage(one, other)).values())
    assert drift.apart((latents, latents), (one[:3], other[:3])).keys() == {"w2_class", "frechet"}


def test_each_picture_is_held_against_its_own_caption(request_for, captioned, monkeypatch):
    seen = []

    def spy(base, custom, latents, prompts, sigmas, draws, seed, paired):
        seen.append((base, custom, latents, prompts, draws, paired))
        return SimpleNamespace(interval=SimpleNamespace(mean=1.5))

    monkeypatch.setattr(drift, "fisher_divergence", spy)
    monkeypatch.setattr(drift, "predictor", lambda customised, texts: texts)
    lab = real_lab(replace(request_for, limit=1), ["infusion"])
    fisher = drift.cells(lab)[1]
    assert [(r.measure, r.value) for r in fisher.compute().rows] == [("fisher", 1.5)]
    ((base, custom, latents, prompts, draws, paired),) = seen
    assert base == custom
    assert set(base) == {"a boat", "a red boat", "the beach"}
    assert (prompts, draws, paired) == (3, 6, True)
    files = {c.caption: c.file for c in read_captioned(captioned, 9, 0)}
    for text, latent in zip(base, latents, strict=True):
        expected = lab.bench.studio.base.encode([Image.open(files[text]).convert("RGB")])[0]
        assert torch.equal(latent, expected)


def test_other_captions_are_another_cell(request_for, captioned):
    names = {cell.name for cell in drift.cells(real_lab(request_for, ["infusion"]))}
    (captioned / "0.txt").write_text("a ship")
    others = {cell.name for cell in drift.cells(real_lab(request_for, ["infusion"]))}
    assert len(names & others) == 3  # distances, and their yardstick
    assert len(names - others) == 2


def test_a_limit_caps_the_figures(request_for):
    lab = real_lab(replace(request_for, limit=1, steps=(100, 400), samples=1000, figure_prompts=20), ["lora"])
    cells = drift.cells(lab)
    assert [(c.method, c.concept) for c in cells] == [("base, other seeds", "dog2"), ("lora", "dog2"), ("lora", "dog2")]


def test_only_what_is_asked_for_is_measured(request_for):
    with pytest.raises(InfusionError, match="no study of real weights 'fidelity'; choose of: table1"):
        run_real(replace(request_for, only=("fidelity",)))
    with pytest.raises(InfusionError, match="no method 'sd'"):
        run_real(request_for, ["sd"])
    with pytest.raises(InfusionError, match="nothing to measure; --only drift needs --pictures"):
        run_real(replace(request_for, pictures=None))


def test_points_are_means_over_concepts_with_students_interval():
    values = {"cat": 2.0, "dog": 5.0, "boot": 11.0}
    rows = [Row("drift", "lora", c, step, "", 0, "fisher", v * step) for c, v in values.items() for step in (1, 2)]
    rows += [Row("drift", "infusion", c, 1, "", 0, "fisher", 0.0) for c in values]
    rows += [Row("drift", "lora", "cat", 1, "", 0, "w2_class", 77.0)]
    found = points(rows, "fisher")
    low, high = stats.t.interval(0.95, 2, loc=6, scale=stats.sem(list(values.values())))
    assert found["lora"][1].mean == pytest.approx(6)
    assert found["lora"][1].high == pytest.approx(high)
    assert found["lora"][1].low == pytest.approx(max(low, 0))
    assert found["lora"][2].mean == pytest.approx(12)
    assert {step: span.mean for step, span in found["infusion"].items()} == {1: 0.0}
    lines = drift_figure(found, "fisher", {"lora": "LoRA"}).axes[0].containers
    assert [c.get_label() for c in lines] == ["LoRA", "infusion"]
    assert list(lines[0].lines[0].get_ydata()) == pytest.approx([6, 12])
