from __future__ import annotations

import json
import resource
import signal
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from infusion_core.errors import InfusionError
from infusion_core.residual_file import concept_bytes, concept_from_bytes, load_concept, save_concept
from infusion_core.residuals import Base, ConceptResidual, zero_residual
from infusion_core.schedule import ALWAYS, NEVER, Window
from infusion_core.sites import Site

from .explicit_file import assemble, content_sha256, disassemble
from .sd15 import SD15

GOLDEN = Path(__file__).parent / "golden" / "concept-v1.safetensors"  # as written before files had a hash
HASHED = Path(__file__).parent / "golden" / "concept-v1-sha256.safetensors"


def tiny() -> ConceptResidual:
    base = Base("sd1", 4, "epsilon", (Site("input.1.0", "down.0", 2), Site("middle.0.0", "mid", 2)))
    concept = zero_residual(base, "stuffed animal", "block", bins=1, tokens=2)
    for i, tensor in enumerate(concept.tensors.values()):
        tensor.copy_(torch.arange(8).reshape(1, 2, 4) / 8 - i)
    return replace(concept, training={"steps": "400", "title": "bear"}, thumbnail=b"\x89PNG fake")


def random_sd15(layout, seed=0):
    concept = zero_residual(SD15, "cat", layout, parts=3)
    generator = torch.Generator().manual_seed(seed)
    for tensor in concept.tensors.values():
        tensor.normal_(generator=generator)
    return concept


@pytest.mark.parametrize(("layout", "bytes_"), [("block", 10752), ("layer", 24576), ("value", 24960), ("parts", 64512)])
def test_sizes_of_the_design(tmp_path, layout, bytes_):
    path = tmp_path / "cat.safetensors"
    size = save_concept(path, random_sd15(layout))
    assert size == path.stat().st_size
    assert sum(t.nbytes for t in load_file(path).values()) == bytes_
    if layout == "block":
        assert size < 12288


def test_a_trained_block_concept_stays_under_12288_bytes(tmp_path):
    training = {"steps": "400", "lr": "0.01", "batch": "4", "images": "5", "seed": "0", "resolution": "512x512",
                "title": "my-cat", "validation_loss": "0.12345"}  # fmt: skip
    assert save_concept(tmp_path / "cat.safetensors", replace(random_sd15("block"), training=training)) < 12288


def test_int8_halves_the_file_within_half_a_step(tmp_path):
    concept = random_sd15("value")
    save_concept(tmp_path / "cat.safetensors", concept, "int8")
    stored = load_file(tmp_path / "cat.safetensors")
    assert sum(t.nbytes for k, t in stored.items() if k.startswith("residual.")) == 12480
    loaded = load_concept(tmp_path / "cat.safetensors")
    for name, tensor in concept.tensors.items():
        step = tensor.abs().max() / 127
        assert ((loaded.tensors[name] - tensor).abs() <= step * 0.501).all()


def test_what_is_saved_is_loaded(tmp_path):
    save_concept(tmp_path / "bear.safetensors", tiny())
    loaded = load_concept(tmp_path / "bear.safetensors")
    assert replace(loaded, tensors={}) == replace(tiny(), tensors={})
    assert all(torch.equal(loaded.tensors[k], v) for k, v in tiny().tensors.items())


def test_the_file_says_how_it_was_trained():
    own = replace(tiny(), training={"steps": "400", "replace_maps": "false"})
    assert concept_from_bytes(concept_bytes(own)).map_window == NEVER
    assert concept_from_bytes(concept_bytes(replace(own, training={"replace_maps": "true"}))).map_window == ALWAYS
    some = replace(own, training={"replacement_end": "0.25"})
    assert concept_from_bytes(concept_bytes(some)).map_window == Window(0.0, 0.25)
    assert concept_from_bytes(GOLDEN.read_bytes()).map_window == ALWAYS  # files that do not say


@pytest.mark.parametrize("end", ["", "2", "-0.5", "nan", "half", "0.5e0", "0.12345678901234567890"])
def test_a_share_of_a_run_that_is_none(end):
    with pytest.raises(ValueError, match="no share of a run"):
        concept_bytes(replace(tiny(), training={"replacement_end": end}))


def test_golden_bytes():
    assert concept_bytes(tiny()) == HASHED.read_bytes()
    for golden in (GOLDEN, HASHED):
        assert concept_bytes(concept_from_bytes(golden.read_bytes())) == HASHED.read_bytes()


def test_the_hash_is_the_format_pages():
    metadata, parts = disassemble(HASHED.read_bytes())
    assert metadata["content_sha256"] == content_sha256(metadata, parts)
    before, _ = disassemble(GOLDEN.read_bytes())
    assert metadata == {**before, "content_sha256": metadata["content_sha256"]}
    backwards = {"content_sha256": metadata["content_sha256"], **dict(reversed(before.items()))}
    concept_from_bytes(assemble(backwards, dict(reversed(parts.items()))))  # order is no content


@pytest.mark.parametrize("storage", ["fp16", "int8"])
def test_every_flipped_bit_of_the_data_is_noticed(storage):
    file = concept_bytes(tiny(), storage)
    start = 8 + struct.unpack_from("<Q", file)[0]
    for bit in range(8 * start, 8 * len(file)):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InfusionError, match="not those that content_sha256 was made of"):
            concept_from_bytes(bytes(flipped))


def test_the_header_is_what_the_format_page_says(tmp_path):
    save_concept(tmp_path / "bear.safetensors", tiny())
    with safe_open(tmp_path / "bear.safetensors", "pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == ["residual.down.0", "residual.mid"]
        assert file.get_slice("residual.mid").get_shape() == [1, 2, 4]
    assert metadata["format"] == "infusion-concept"
    assert metadata["word"] == metadata["modelspec.trigger_phrase"] == "stuffed animal"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/infusion"
    assert metadata["modelspec.title"] == "bear"
    assert metadata["modelspec.thumbnail"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("cut", [0, 7, 8, 100, 500, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(GOLDEN.read_bytes()[:cut])
    with pytest.raises(InfusionError, match=r"cut\.safetensors.*(damaged|not a safetensors)"):
        load_concept(path)


def edited(**changes):
    """The golden file with other metadata."""
    data = GOLDEN.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"].update({k.replace("__", "."): v for k, v in changes.items()})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not an Infusion concept"),
        ({"format_version": "2"}, "update Infusion"),
        ({"layout": "spiral"}, "unknown layout"),
        ({"word": " "}, "cannot be a concept's word"),
        ({"context_width": "wide"}, "not a valid concept"),
        ({"training": "[1]"}, "not a valid concept"),
        ({"training": '{"a": {"b": 1}}'}, "not a valid concept"),
        ({"modelspec__thumbnail": "http://x"}, "thumbnail"),
        ({"modelspec__prediction_type": "flow"}, "not a valid concept"),
    ],
)
def test_hostile_metadata_is_refused(changes, message):
    with pytest.raises(InfusionError, match=message):
        concept_from_bytes(edited(**changes))


@pytest.mark.parametrize(
    "tensors",
    [
        {"residual.mid": torch.full((1, 1, 4), float("nan"))},
        {"residual.mid": torch.zeros(4)},
        {"weights": torch.zeros(1, 1, 4)},
        {"residual.mid": torch.zeros(1, 1, 4), "residual.up.0": torch.zeros(2, 1, 4)},
        {"residual.mid": torch.zeros(1, 1, 4, dtype=torch.int8)},
        {},
    ],
)
def test_hostile_tensors_are_refused(tensors):
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
    with pytest.raises(InfusionError):
        concept_from_bytes(save(tensors, metadata))


def test_a_plain_lora_is_told_apart():
    with pytest.raises(InfusionError, match="not an Infusion concept"):
        concept_from_bytes(save({"lora_down.weight": torch.zeros(2)}, {"ss_network_dim": "4"}))


def test_nan_is_never_written(tmp_path):
    concept = tiny()
    concept.tensors["mid"][0, 0, 0] = float("inf")
    with pytest.raises(InfusionError, match="mid is not finite"):
        save_concept(tmp_path / "x.safetensors", concept)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_concept(path, tiny())
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(InfusionError, match="free some space"):
            save_concept(path, random_sd15("block"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (replace(SD15, architecture="sd2"), "made for sd1, not sd2"),
        (replace(SD15, context_width=1024), "context width 768, not 1024"),
        (replace(SD15, prediction="v_prediction"), "epsilon models, this one predicts v_prediction"),
        (replace(SD15, sites=SD15.sites[:-3]), r"up\.3, which this model lacks"),
    ],
)
def test_another_base_is_refused(base, message):
    with pytest.raises(InfusionError, match=message):
        random_sd15("block").check_fits(base)
    random_sd15("block").check_fits(SD15)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InfusionError, match=r"cannot read .*none\.safetensors"):
        load_concept(tmp_path / "none.safetensors")
