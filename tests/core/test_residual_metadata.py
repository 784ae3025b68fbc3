"""What a concept file's metadata may say, word for word; and the whole of every refusal."""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from infusion_core.errors import InfusionError
from infusion_core.residual_file import (
    MAX_BYTES,
    concept_bytes,
    concept_from_bytes,
    load_concept,
    save_concept,
    thumbnail_url,
)
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.sites import Site

SITES = (Site("input.1.0", "down.0", 2), Site("middle.0.0", "mid", 2))
PLACES = {"residual.down.0": torch.ones(1, 1, 4), "residual.mid": torch.ones(1, 1, 4)}


def concept(architecture="sd1", prediction="epsilon", **changes) -> ConceptResidual:
    return replace(zero_residual(Base(architecture, 4, prediction, SITES), "cat"), **changes)


def metadata_of(made: ConceptResidual) -> dict[str, str]:
    data = concept_bytes(made)
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length])["__metadata__"]


def written(tensors=None, **changes) -> bytes:
    """A file with other metadata; None leaves an entry out, dots in keys are written as two underscores."""
    told = {**metadata_of(concept()), **{k.replace("__", "."): v for k, v in changes.items()}}
    return save(PLACES if tensors is None else tensors, {k: v for k, v in told.items() if v is not None})


def refusal(data: bytes, **options) -> str:
    with pytest.raises(InfusionError) as refused:
        concept_from_bytes(data, **options)
    return str(refused.value)


@pytest.mark.parametrize(
    ("architecture", "prediction", "spec", "said"),
    [
        ("sd1", "epsilon", "stable-diffusion-v1/infusion", "epsilon"),
        ("sd2", "v_prediction", "stable-diffusion-v2/infusion", "v"),
        ("sdxl", "epsilon", "stable-diffusion-xl-v1-base/infusion", "epsilon"),
        ("tinyworld", "epsilon", "tinyworld/infusion", "epsilon"),
        ("unet640", "v_prediction", "unet640/infusion", "v"),
    ],
)
def test_base_and_prediction_are_written_and_read(architecture, prediction, spec, said):
    made = concept(architecture, prediction)
    told = metadata_of(made)
    assert told == {
        "format": "infusion-concept", "format_version": "1", "word": "cat", "layout": "block", "base": architecture,
        "context_width": "4", "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": spec,
        "modelspec.implementation": "infusion", "modelspec.title": "cat", "modelspec.trigger_phrase": "cat",
        "modelspec.prediction_type": said,
    }  # fmt: skip
    read = concept_from_bytes(concept_bytes(made))
    assert (read.architecture, read.prediction, read.context_width) == (architecture, prediction, 4)
    assert read.training == {}


def test_title_resolution_and_date_are_modelspecs_and_the_rest_is_json():
    training = {"title": "Käthe", "resolution": "512x512", "date": "2026-01-02", "steps": "400", "lr": "0.05"}
    made = concept(training=training)
    told = metadata_of(made)
    assert (told["modelspec.title"], told["modelspec.resolution"], told["modelspec.date"]) == (
        "Käthe", "512x512", "2026-01-02",
    )  # fmt: skip
    assert "Käthe".encode() in concept_bytes(made)  # not spelled out as escapes
    assert told["training"] == '{"lr":"0.05","steps":"400"}'
    assert concept_from_bytes(concept_bytes(made)).training == training
    untitled = concept(training={"title": "cat"})  # the word itself is no title
    assert concept_from_bytes(concept_bytes(untitled)).training == {}


@pytest.mark.parametrize(("picture", "kind"), [(b"\x89PNG etc", "png"), (b"\xff\xd8\xff etc", "jpeg")])
def test_thumbnails_are_data_urls(picture, kind):
    url = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
    assert thumbnail_url(picture) == metadata_of(concept(thumbnail=picture))["modelspec.thumbnail"] == url
    assert concept_from_bytes(concept_bytes(concept(thumbnail=picture))).thumbnail == picture
    assert concept_from_bytes(concept_bytes(concept())).thumbnail is None


INVALID = "somewhere is not a valid concept file ({}); get it again"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"word": " "}, "the word is empty or longer than 200 letters"),
        ({"word": "c" * 201}, "the word is empty or longer than 200 letters"),
        ({"layout": "spiral"}, "unknown layout 'spiral'"),
        ({"training": '{"a": 1}'}, "training settings must be strings"),
        ({"modelspec__thumbnail": "data:image/gif;base64,AAAA"}, "the thumbnail is not a PNG or JPEG data URL"),
        ({"modelspec__thumbnail": "data:image/png;base64,AA*="}, "the thumbnail is damaged"),
        ({"modelspec__thumbnail": "data:image/png;base64,AA;base64,AA=="}, "the thumbnail is damaged"),
        ({"modelspec__prediction_type": "V"}, "'V'"),
    ],
)
def test_bad_metadata_is_refused_whole(changes, reason):
    assert refusal(written(**changes), where="somewhere") == INVALID.format(reason)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": torch.ones(1, 1, 4)}, "unexpected tensor 'weight'"),
        ({"residual.mid": torch.ones(4)}, "residual.mid is not a (bins, tokens, width) residual"),
        ({"residual.mid": torch.ones(1, 0, 4)}, "residual.mid is not a (bins, tokens, width) residual"),
        (
            {"residual.mid": torch.ones(1, 1, 4, dtype=torch.float64)},
            "residual.mid is not a (bins, tokens, width) residual",
        ),
        ({"residual.mid": torch.full((1, 1, 4), float("inf"))}, "residual.mid holds NaN or infinite numbers"),
        (
            {"residual.mid": torch.ones(1, 1, 4), "residual.down.0": torch.ones(2, 1, 4)},
            "no residuals, or bins and tokens differ between them",
        ),
        ({}, "no residuals, or bins and tokens differ between them"),
    ],
)
def test_bad_tensors_are_refused_whole(tensors, reason):
    assert refusal(written(tensors), where="somewhere") == INVALID.format(reason)


def test_other_files_are_refused_whole():
    other, newer = "is a safetensors file but not an Infusion concept; choose a concept file", "format version"
    assert refusal(written(format="lora")) == f"the file {other}"
    assert refusal(save(PLACES)) == f"the file {other}"
    assert refusal(written(format_version="2")) == f"the file has {newer} 2, this software reads 1; update Infusion"
    assert re.fullmatch(r"x is damaged or not a safetensors file \(.+\); get it again", refusal(b"junk", where="x"))


def test_words_of_200_letters_and_spaces_around_them_are_fine():
    assert concept_from_bytes(written(word=f" {'c' * 200} ")).word == "c" * 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_of_the_format_is_read_as_full_precision(dtype):
    read = concept_from_bytes(written({k: t.to(dtype) for k, t in PLACES.items()}))
    assert {t.dtype for t in read.tensors.values()} == {torch.float32}
    assert read.tensors.keys() == {"down.0", "mid"}


def test_unreadable_and_oversized_files_are_named(tmp_path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InfusionError) as refused:
        load_concept(path)
    assert str(refused.value) == f"{path} is larger than any concept file; choose a file that Infusion wrote"
    with pytest.raises(InfusionError) as refused:
        load_concept(tmp_path / "gone")
    assert str(refused.value) == f"cannot read {tmp_path / 'gone'}: No such file or directory; check the path"


def test_what_cannot_be_stored_is_refused_whole(tmp_path):
    with pytest.raises(InfusionError) as refused:
        save_concept(tmp_path / "x.safetensors", concept(), "zip")
    assert str(refused.value) == "unknown storage 'zip'; choose one of: fp16, int8"
    large = concept(tensors={"mid": torch.full((1, 1, 4), 70000.0)})
    with pytest.raises(InfusionError) as refused:
        concept_bytes(large)
    assert str(refused.value) == "the residual at mid is not finite; train again with a lower learning rate"


def test_eight_bits_keep_the_sign_and_the_largest_number(tmp_path):
    values = torch.tensor([[[-2.0, 0.0, 1.0, 0.5]]])
    save_concept(tmp_path / "x.safetensors", concept(tensors={"mid": values}), "int8")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.get_tensor("residual.mid").tolist() == [[[-127, 0, 64, 32]]]
        assert file.get_tensor("scale.mid").tolist() == pytest.approx([2 / 127])
    read = load_concept(tmp_path / "x.safetensors").tensors["mid"]
    assert read.flatten().tolist() == pytest.approx([-2.0, 0.0, 128 / 127, 64 / 127])
    zero = concept_from_bytes(concept_bytes(concept(), "int8"))
    assert not any(t.any() for t in zero.tensors.values())
