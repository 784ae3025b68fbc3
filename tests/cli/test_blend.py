"""The command `blend` as a user runs it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from infusion_cli.blend import BlendRequest, run_blend
from infusion_core.dreamblend import BlendSettings
from infusion_core.embedded.adapters import load_variant
from infusion_core.embedded.blend import draw_blended
from infusion_core.embedded.model import load_model
from infusion_core.embedded.sampling import SampleSettings
from infusion_core.errors import InfusionError
from infusion_core.grid import labelled_grid

from .test_cli import infusion


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """Two LoRA files on TinyWorld, and one that changes its text encoder alone."""
    folder = tmp_path_factory.mktemp("epochs")
    unet = load_model("tinyworld").denoiser.unet
    for seed, name in enumerate(("early", "late")):
        g, state = torch.Generator().manual_seed(seed), {}
        for path, layer in unet.named_modules():
            if path.endswith(("attn2.to_q", "attn2.to_k")):
                key = f"lora_unet_{path.replace('.', '_')}"
                state[f"{key}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=g) * 0.2
                state[f"{key}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=g) * 0.2
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    text = {f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{which}.weight": torch.zeros(shape)
            for which, shape in (("up", (160, 2)), ("down", (2, 160)))}  # fmt: skip
    safetensors.torch.save_file(text, folder / "text.safetensors")
    return folder


def drawn(folder):
    return [Image.open(path).tobytes() for path in sorted(folder.glob("?????.png"))]


def test_one_alpha_draws_what_the_library_draws(epochs, tmp_path):
    late = f"{epochs / 'late.safetensors'}:0.8"
    done = infusion("blend", "--early", "base", "--late", late, "--prompt", "a circle", "--alpha", 0.2, "--count", 2,
                    "--steps", 3, "--layers", "up", "--layers", "mid", "--out", tmp_path, "--seed", 5)  # fmt: skip
    assert done.returncode == 0, done.stderr
    base = load_model("tinyworld")
    settings, sampling = BlendSettings(alpha=0.2, where=("up", "mid")), SampleSettings(3, base.guidance)
    pictures, references = draw_blended(base, load_variant(late, base), "a circle", 2, 5, sampling, settings)
    assert drawn(tmp_path) == [picture.tobytes() for picture in pictures]
    assert drawn(tmp_path / "early") == [picture.tobytes() for picture in references]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["early"], report["late"], report["alphas"], report["seed"]) == ("base", late, [0.2], 5)
    assert report["settings"]["blend"]["where"] == ["up", "mid"]
    assert report["seconds"] > 0


def test_several_alphas_have_folders_and_a_grid(epochs, tmp_path):
    early, late = epochs / "early.safetensors", epochs / "late.safetensors"
    done = infusion("blend", "--early", early, "--late", late, "--prompt", "a circle", "--mode", "replacement",
                    "--alpha", 0, "--alpha", 1, "--count", 2, "--steps", 2, "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, guided, reference = (drawn(tmp_path / name) for name in ("alpha-0", "alpha-1", "early"))
    assert alone != guided
    assert len({*alone, *guided, *reference}) == 6
    with Image.open(tmp_path / "grid.png") as grid:
        rows = [
            [Image.open(tmp_path / name / f"{i:05d}.png") for i in range(2)] for name in ("early", "alpha-0", "alpha-1")
        ]
        labels = ("early model", "alpha 0", "alpha 1")
        expected = labelled_grid(list(zip(labels, rows, strict=True)), ["seed 0", "seed 1"])
        assert grid.tobytes() == expected.tobytes()


def test_a_grid_has_its_pictures_where_its_labels_are():
    colours = [["red", "lime"], ["blue", "yellow"], ["black", "white"]]
    rows = [(f"row {i}", [Image.new("RGB", (40, 30), c) for c in row]) for i, row in enumerate(colours)]
    pixels = np.asarray(labelled_grid(rows, ["left", "a very long label of several words"]))
    for row in colours:
        at = [np.argwhere((pixels == Image.new("RGB", (1, 1), c).getpixel((0, 0))).all(2)) for c in row[:1]]
        assert all(len(places) >= 40 * 30 for places in at)
    red, lime, blue = (
        np.argwhere((pixels == Image.new("RGB", (1, 1), c).getpixel((0, 0))).all(2)) for c in ("red", "lime", "blue")
    )
    assert red[:, 1].max() < lime[:, 1].min()
    assert red[:, 0].max() < blue[:, 0].min()
    assert np.array_equal(red[:, 1], blue[:, 1])
    assert (pixels[: red[:, 0].min(), red[:, 1].min() :] < 128).any()  # labels above
    assert (pixels[red[:, 0].min() : red[:, 0].max(), : red[:, 1].min()] < 128).any()  # and beside
    with pytest.raises(ValueError, match="rows of as many pictures as it has columns"):
        labelled_grid(rows, ["left"])


def test_large_pictures_shrink_in_a_grid():
    grid = labelled_grid([("x", [Image.new("RGB", (2000, 1000), "red")])], ["y"])
    assert grid.width < 400
    assert (np.asarray(grid) == (255, 0, 0)).all(2).sum() == 256 * 128


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--early", "{late}", "--late", "{late}"),
            "early and late are both .*late.safetensors, which changes nothing",
        ),
        (("--early", "base", "--late", "base"), "early and late are both base"),
        (("--early", "base", "--late", "{text}"), "changes text encoders alone, so attention maps stay the base's"),
        (("--early", "base", "--late", "{late}:x"), "is not a number; write FILE.safetensors:0.8"),
        (("--early", "base", "--late", "{late}:nan"), "must be a number up to"),
        (("--early", "base", "--late", "{late}x"), "late.safetensorsx is missing"),
        (("--early", "base", "--late", "{late}", "--alpha", "1", "--alpha", "1"), "an alpha is given twice"),
        (
            ("--early", "base", "--late", "{late}", "--alpha", "0.1234567", "--alpha", "0.1234568"),
            "an alpha is given twice, to six digits; leave one out",
        ),
        (("--early", "base", "--late", "{late}", "--count", "0"), "must be at least 1 and at most 1000"),
        (("--early", "base", "--late", "{late}", "--alpha", "2", "--mode", "replacement"), "alpha must be from 0 to 1"),
        (("--early", "base", "--late", "{late}", "--layers", "up.9"), "no block or layer 'up.9'; its blocks are"),
        (("--early", "base", "--late", "{late}", "--start", "0.8", "--end", "0.2"), "start before end"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(epochs, tmp_path, options, told):
    places = {name: epochs / f"{name}.safetensors" for name in ("late", "text")}
    options = [option.format(**places) for option in options]
    done = infusion("blend", "--prompt", "a circle", "--steps", 2, "--out", tmp_path / "out", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(told, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_where_pictures_go_is_told_before_anything_is_loaded(epochs):
    late = epochs / "late.safetensors"
    with pytest.raises(
        InfusionError, match=r"late\.safetensors is a file, where a folder must go; choose another --out"
    ):
        run_blend(BlendRequest("gone", "base", str(late), "a circle", late, (0.1,), BlendSettings()))
