"""What a concept file's metadata may say, word for word; and the whole of every refusal."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from infusion_core.errors import InfusionError
from infusion_core.residual_file import (
    MAX_BYTES,
    concept_bytes,
    concept_from_bytes,
    load_concept,
    save_concept,
)
from infusion_core.residual_rules import MOST_LETTERS
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.sites import Site
from infusion_core.tensor_file import UNREADABLE, read_tensors
from infusion_core.thumbnails import LONGEST_EDGE, MOST_BYTES, check_picture, thumbnail_url

from .explicit_file import assemble, with_header

SITES = (Site("input.1.0", "down.0", 2), Site("middle.0.0", "mid", 2))
PLACES = {"residual.down.0": torch.ones(1, 1, 4), "residual.mid": torch.ones(1, 1, 4)}


def concept(architecture="sd1", prediction="epsilon", **changes) -> ConceptResidual:
    return replace(zero_residual(Base(architecture, 4, prediction, SITES), "cat"), **changes)


def metadata_of(made: ConceptResidual) -> dict[str, str]:
    data = concept_bytes(made)
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length])["__metadata__"]


def written(tensors=None, **changes) -> bytes:
    """A file with other metadata and no hash; None leaves an entry out, dots in keys are two underscores."""
    told = {**metadata_of(concept()), "content_sha256": None, **{k.replace("__", "."): v for k, v in changes.items()}}
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
        "modelspec.prediction_type": said, "content_sha256": told["content_sha256"],
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


def picture(kind: str, edges: tuple[int, int] = (96, 64), **options) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", edges, "red").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("drawn", "kind"), [(picture("PNG"), "png"), (picture("JPEG"), "jpeg")])
def test_thumbnails_are_data_urls(drawn, kind):
    url = f"data:image/{kind};base64,{base64.b64encode(drawn).decode()}"
    assert thumbnail_url(drawn) == metadata_of(concept(thumbnail=drawn))["modelspec.thumbnail"] == url
    assert concept_from_bytes(concept_bytes(concept(thumbnail=drawn))).thumbnail == drawn
    assert concept_from_bytes(concept_bytes(concept())).thumbnail is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(999)}, {"comment": "x"}])
def test_pictures_are_measured_where_they_say_how_large_they_are(options):
    for kind in ("PNG", "JPEG"):
        for edges in ((LONGEST_EDGE, 3), (3, LONGEST_EDGE)):
            check_picture(picture(kind, edges, **options))
        for edges in ((LONGEST_EDGE + 1, 3), (3, LONGEST_EDGE + 1)):
            with pytest.raises(ValueError, match="larger than 1024 x 1024 px"):
                check_picture(picture(kind, edges, **options))
    drawn = picture("JPEG", **options)
    check_picture(drawn[:2] + b"\xff\xff" + drawn[2:])  # markers may be padded


@pytest.mark.parametrize(
    "wrong",
    [
        b"", b"<svg/>", b"GIF89a" + bytes(99), picture("PNG")[:12] + bytes(99), b"\x89PNG" + picture("PNG"),
        picture("JPEG")[:20], b"\xff\xd8\xff" + bytes(99), b"\xff\xd8" + b"\xff" * 99, b"\xff\xd8\xff\xe0\0\0" * 9,
        b"\xff\xd8\xff\xd9" + picture("JPEG"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_no_thumbnail(wrong):
    with pytest.raises(ValueError, match="not a PNG or JPEG picture"):
        check_picture(wrong)
    with pytest.raises(InfusionError, match="not a PNG or JPEG picture"):
        concept_bytes(concept(thumbnail=wrong))
    told = written(modelspec__thumbnail=f"data:image/png;base64,{base64.b64encode(wrong).decode()}")
    assert "not a PNG or JPEG picture" in refusal(told)


def test_a_thumbnail_is_small_and_of_the_kind_it_says():
    padded = picture("PNG")
    check_picture(padded + bytes(MOST_BYTES - len(padded)))
    with pytest.raises(ValueError, match="more than 262144 bytes"):
        check_picture(padded + bytes(MOST_BYTES - len(padded) + 1))
    told = thumbnail_url(padded).replace("png", "jpeg")
    assert "another kind of picture than it says" in refusal(written(modelspec__thumbnail=told))


WRONG_SCALE = "'scale.mid' is not one F32 number beside an I8 residual"
INVALID = "somewhere is not a valid concept file ({}); get it again"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"word": " "}, "'' cannot be a concept's word"),
        ({"word": "c" * 201}, f"'{'c' * 26}…{'c' * 13}' cannot be a concept's word"),
        ({"word": "cat\x1b[31m"}, "'cat\\x1b[31m' cannot be a concept's word"),
        ({"word": "[/red]"}, "'[/red]' cannot be a concept's word"),
        ({"word": None}, "its metadata lack word"),
        ({"layout": "spiral"}, "unknown layout 'spiral'"),
        ({"layout": "parts"}, "residual.down.0 has width 4, no multiple of twice the context width 4"),
        ({"layout": "value"}, "'down.0' is no place of the layout value"),
        ({"base": "sd1", "context_width": "1024"}, "a context width of 1024 is sd2's, not sd1's"),
        ({"base": "unet640", "context_width": "641"}, "a context width of 641 is unet641's, not unet640's"),
        ({"base": "sd 1"}, "'sd 1' is no base model's family"),
        ({"context_width": "5"}, "residual.down.0 has width 4, not the context width 5"),
        ({"context_width": "0"}, "a context width of 0"),
        ({"context_width": "٤"}, "'٤' is not a context width"),
        ({"context_width": "4_0"}, "'4_0' is not a context width"),
        ({"training": '{"a": 1}'}, "training settings must be strings in one JSON object"),
        ({"training": '{"a": ["b"]}'}, "training settings must be strings in one JSON object"),
        ({"training": "[" * 90_000}, "its JSON is nested too deeply"),
        ({"training": '{"a": "b", "a": "c"}'}, "its JSON holds a name twice"),
        ({"training": '{"a": NaN}'}, "its JSON holds a number that no file needs"),
        ({"training": f'{{"a": {"9" * 10**5}}}'}, "its JSON holds a number that no file needs"),
        ({"training": '{"title": "dog"}'}, "title, resolution and date must not stand among the training settings"),
        ({"training": '{"a": "\\ud800"}'}, "the training setting 'a' is too long or holds control characters"),
        ({"training": '{"a\\n": "b"}'}, "the training setting 'a' is too long or holds control characters"),
        ({"training": f'{{"a": "{"b" * 1001}"}}'}, "the training setting 'a' is too long or holds control characters"),
        ({"modelspec__title": "a\x9b"}, "the training setting 'title' is too long or holds control characters"),
        ({"content_sha256": "0" * 64}, "its contents are not those that content_sha256 was made of"),
        ({"modelspec__thumbnail": "data:image/gif;base64,AAAA"}, "the thumbnail is not a PNG or JPEG data URL"),
        ({"modelspec__thumbnail": "data:image/png;base64,AA*="}, "the thumbnail is damaged"),
        ({"modelspec__thumbnail": "data:image/png;base64,AA;base64,AA=="}, "the thumbnail is damaged"),
        ({"modelspec__prediction_type": "V"}, "unknown prediction type 'V'"),
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
        ({"residual.mid": torch.ones(1, 1, 4, dtype=torch.float64)}, "'residual.mid' is of type F64"),
        ({"residual.mid": torch.ones(1, 1, 4, dtype=torch.int8)}, "'residual.mid' is of type I8 and has no scale"),
        ({"residual.mid": torch.ones(1, 1, 5)}, "residual.mid has width 5, not the context width 4"),
        ({"residual.x": torch.ones(1, 1, 4)}, "'x' is no place of the layout block"),
        ({"residual.mid\n": torch.ones(1, 1, 4)}, "'mid' is no place of the layout block"),
        ({"residual.mid": torch.full((1, 1, 4), 65520.0)}, "residual.mid holds numbers too large for 16 bits"),
        ({"residual.mid": torch.full((1, 1, 4), -65520.0)}, "residual.mid holds numbers too large for 16 bits"),
        ({"residual.mid": torch.tensor([[[0, 1, float("nan"), 2]]])}, "residual.mid holds NaN or infinite numbers"),
        *(
            ({"residual.mid": torch.ones(1, 1, 4, dtype=kind), "scale.mid": scale}, WRONG_SCALE)
            for kind, scale in [
                (torch.int8, torch.ones(2)),
                (torch.int8, torch.ones(1, 1)),
                (torch.int8, torch.tensor(1.0)),
                (torch.int8, torch.ones(1, dtype=torch.float16)),
                (torch.float16, torch.ones(1)),
            ]
        ),
        ({"residual.mid": torch.ones(1, 1, 4), "scale.up.0": torch.ones(1)}, WRONG_SCALE.replace("mid", "up.0")),
        (
            {"residual.mid": torch.ones(1, 1, 4, dtype=torch.int8), "scale.mid": torch.tensor([float("nan")])},
            "residual.mid holds NaN or infinite numbers",
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


def test_a_number_of_parts_holds_for_every_place():
    uneven = {"residual.mid": torch.ones(1, 1, 8), "residual.up.0": torch.ones(1, 1, 16)}
    reason = "the number of parts differs between its residuals"
    assert refusal(written(uneven, layout="parts"), where="somewhere") == INVALID.format(reason)


def test_other_files_are_refused_whole():
    other, newer = "is a safetensors file but not an Infusion concept; choose a concept file", "format version"
    assert refusal(written(format="lora")) == f"the file {other}"
    assert refusal(save(PLACES)) == f"the file {other}"
    assert refusal(written(format_version="2")) == f"the file has {newer} '2', this software reads 1; update Infusion"
    assert re.fullmatch(r"x is damaged or not a safetensors file \(.+\); get it again", refusal(b"junk", where="x"))


def tensor(dtype="I8", shape=(1,), data_offsets=(0, 1)) -> bytes:
    """A file of one byte that is one tensor, or said to be."""
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets)}
    return with_header(json.dumps({"a": entry}).encode(), b"x")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"1234567", "it has no header"),
        (with_header(b"{}", b"")[:-1], "its header is cut off"),
        (with_header(b" " * (2**20 + 1), b""), "its header is longer than 1048576 bytes"),
        (with_header("[]".encode("utf-16-le"), b""), "Expecting value: line 1 column 2 (char 1)"),
        (with_header(b"[]", b""), "its header is not a JSON object"),
        (with_header(b'{"a": {}, "a": {}}', b""), "its JSON holds a name twice"),
        (with_header(b'{"a": [' + b"[]," * 10**5 + b"[]]}", b""), "its JSON holds more lists than any file needs"),
        (with_header(b'{"a": {}}', b""), "its header describes something that is not a tensor"),
        (assemble({"word": 1}, {}), "its metadata are not strings"),
        (tensor("I7"), "its header names an unknown data type"),
        (tensor(shape=[-1]), "its header holds a shape or an offset that cannot be"),
        (tensor(shape=[True]), "its header holds a shape or an offset that cannot be"),
        (tensor(data_offsets=[0]), "its header holds a shape or an offset that cannot be"),
        (tensor(shape=[2]), "its header gives a tensor another size than its shape has"),
        (tensor(data_offsets=[1, 2]), "its tensors overlap or leave a gap"),
        (with_header(b"{}", b"x"), "it is cut off, or longer than its tensors"),
    ],
)
def test_bad_headers_are_refused_whole(file, reason):
    assert refusal(file) == f"the file is damaged or not a safetensors file ({reason}); get it again"
    with pytest.raises(UNREADABLE):
        read_tensors(file if len(file) < 2**20 else b"")


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
    assert refusal(bytes(MAX_BYTES + 1), where="x").startswith("x is larger than any concept file")
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


def test_the_largest_numbers_of_16_bits_come_back_from_both_storages():
    largest = concept(tensors={"mid": torch.tensor([[[65519.0, -65519.0, 65504.0, 0.0]]])})
    read = concept_from_bytes(concept_bytes(largest))
    assert read.tensors["mid"].flatten().tolist() == [65504, -65504, 65504, 0]
    rounded = concept_from_bytes(concept_bytes(largest, "int8"))
    assert rounded.tensors["mid"].flatten().tolist() == pytest.approx([65504, -65504, 65504, 0])


def test_a_description_that_no_file_may_have_is_refused_before_it_is_written():
    for changes, reason in (
        ({"word": "[/red]"}, "'[/red]' cannot be a concept's word"),
        ({"prediction": "flow"}, "unknown prediction type 'flow'"),
        ({"layout": "spiral"}, "unknown layout 'spiral'"),
        ({"layout": "parts"}, "residual.down.0 has width 4, no multiple of twice the context width 4"),
        ({"tensors": {"mid": torch.ones(1, 1, 5)}}, "residual.mid has width 5, not the context width 4"),
        ({"tensors": {}}, "no residuals, or bins and tokens differ between them"),
        ({"training": {f"c{i}": "d" * 1000 for i in range(33)}}, "more than 32768 letters of training settings"),
    ):
        with pytest.raises(InfusionError) as refused:
            concept_bytes(concept(**changes))
        word = changes.get("word", "cat")
        assert str(refused.value) == f"the concept {word!r} cannot be a file ({reason}); change that and save again"


def test_a_title_from_an_odd_file_name_is_written_in_letters_that_can_be_read_back():
    made = concept(training={"title": "my\ncat\udcff", "steps": "9" * 2000})
    read = concept_from_bytes(concept_bytes(made)).training
    assert read["title"] == "my cat\\udcff"
    assert len(read["steps"]) == 1000
    kept = {"title": "a  b\u00a0c", "note": "👩\u200d🚀"}
    assert concept_from_bytes(concept_bytes(concept(training=kept))).training == kept


def test_the_longest_settings_and_the_largest_thumbnail_fit_one_file():
    png = picture("PNG")
    training = {"a": "👩" * 763, **{f"key{i:02}": "👩" * 995 for i in range(32)}, "date": ""}
    made = concept(training=training, thumbnail=png + bytes(MOST_BYTES - len(png)))
    assert sum(len(k) + len(v) for k, v in training.items()) == MOST_LETTERS
    assert concept_from_bytes(concept_bytes(made)).training == training


def test_more_numbers_than_a_file_holds_are_refused_before_training(tmp_path):
    wide = Base("sdxl", 2048, "epsilon", tuple(Site(f"input.{i}.0", "mid", 1280) for i in range(70)))
    assert zero_residual(wide, "cat", "layer", bins=10, tokens=5).parameter_count == 7_168_000
    with pytest.raises(InfusionError, match=r"10 bins of 6 tokens in layout layer .* 7,500,000 numbers .*fewer bins"):
        zero_residual(wide, "cat", "layer", bins=10, tokens=6)
    many = {f"residual.input.{i}.0": torch.zeros(1, 1, 4) for i in range(513)}
    assert "more than 512 residuals or 7500000 numbers" in refusal(written(many, layout="layer"))


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", tmp_path, Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(InfusionError, match="cannot read"):
            load_concept(path)


def test_a_file_goes_by_the_name_it_is_given(tmp_path):
    (tmp_path / "x").write_bytes(b"junk")
    for path in (tmp_path / "x", tmp_path / "gone"):
        with pytest.raises(InfusionError) as refused:
            load_concept(path, "my cat")
        assert "my cat" in str(refused.value)
        assert str(tmp_path) not in str(refused.value)
