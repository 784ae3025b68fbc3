"""The concept reader: whatever bytes come in, a valid concept comes out or one line that says why not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from infusion_core.errors import InfusionError
from infusion_core.residual_file import MAX_BYTES, concept_bytes, concept_from_bytes
from infusion_core.residuals import MOST_NUMBERS, ConceptResidual
from tests.core.explicit_file import PLAIN, SIZES, Parts, assemble, content_sha256, disassemble, with_header

from .bounds import within

SECONDS, MEGABYTES = 1.0, 300
GOLDEN = (Path(__file__).parents[1] / "core" / "golden" / "concept-v1.safetensors").read_bytes()
FP16 = ("F16", [1, 2, 4], bytes(range(60, 76)))
INT8 = {"residual.mid": ("I8", [1, 1, 4], b"\x01\x7f\x80\xff"), "scale.mid": ("F32", [1], struct.pack("<f", 0.5))}
SEEDS = (
    disassemble(GOLDEN),
    (PLAIN, {"residual.mid": FP16, "residual.up.1": FP16}),
    (PLAIN | {"training": '{"steps":"400"}', "modelspec.title": "bear"}, INT8),
    (PLAIN | {"layout": "value"}, {"residual.input.4.0": ("F32", [2, 1, 3], struct.pack("<6f", *range(6)))}),
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 127, 768, 4096, 65536, 2**31, 2**32 + 1, 2**62, 2**63, 2**64, 10**30])
GOOD = st.sampled_from(
    [("word", "teddy bear"), ("word", " 猫 "), ("layout", "block"), ("training", '{"steps":"400"}'), ("training", "{}"),
     ("training", '{"a":"\\u00e9\\\\"}'), ("training", '{"a":"\\ud83d\\ude00 [b]"}'), ("modelspec.title", "cat"),
     ("modelspec.title", ""), ("modelspec.resolution", "512x512"), ("modelspec.date", "2026-01-02"), ("other", "x"),
     ("modelspec.prediction_type", "v"), ("modelspec.thumbnail", "data:image/png;base64,iVBORw0KGgo="),
     ("base", "sdxl"), ("base", "unet9"), ("context_width", "04")]
)  # fmt: skip
RUBBISH = st.sampled_from(
    ["", " ", "[/red]", "\x1b[31m", "a\nb", "\u202ecat", "\u2028", "\x00", "cat", "猫", "../../x", "1e999", "NaN", "-1",
     "١٢", "7_68", "0x10", "[" * 5000, '{"a":' * 5000, '{"a":"' + "x" * 90_000 + '"}', '{"a":1}', '{"a":"b","a":"c"}',
     '{"title":"dog","word":"dog"}', '{"a":"\\ud800"}', '{"a":"\x1b"}', '{"a":' + "9" * 5000 + "}", "null", "[1]",
     "x" * 70_000,
     "data:image/png;base64,AAAA", "data:image/jpeg;base64,/9j/", "data:image/png;base64," + "iVBORw0K" * 9000,
     "sd1", "sd2", "sdxl", "tinyworld", "unet4", "unet768", "block", "layer", "value", "parts", "v", "epsilon",
     "768", "2048"]
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=20) | RUBBISH,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*PLAIN, "training", "modelspec.thumbnail", "modelspec.title", "modelspec.date", "other"])
PLACES = st.sampled_from(["mid", "down.0", "up.99", "input.4.0", "x", "", "mid\n", "../up.1", "m" * 3000, "\x1b[2J"])
NAMES = st.builds(lambda kind, place: kind + place, st.sampled_from(["residual.", "scale.", ""]), PLACES)
SHAPES = st.lists(st.sampled_from([0, 1, 1, 1, 2, 3, 4, 60, 768]), max_size=5)
PATTERNS = st.sampled_from(
    [b"\x00", b"\xff", b"\x7f", b"\x00\x7c", b"\x00\x00\x80\x7f", b"\xff\x7b", b"\x01\x00\x00\x3c"]
)


class File(bytes):
    """Bytes whose beginning is enough for a report."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes: {bytes(self[:600])!r}>"


@st.composite
def parts(draw: st.DrawFn) -> tuple[str, list[int], bytes]:
    """A tensor of any kind and shape with as many bytes as it needs, up to a megabyte."""
    dtype, shape, pattern = draw(st.sampled_from(list(SIZES))), draw(SHAPES), draw(PATTERNS)
    count = SIZES[dtype]
    for edge in shape:
        count *= edge
    if count > 2**20:
        return dtype, [1, 1, 4], (pattern * 64)[: 4 * SIZES[dtype]]
    return dtype, shape, (pattern * (count // len(pattern) + 1))[:count]


@st.composite
def residuals(draw: st.DrawFn) -> tuple[str, list[int], bytes]:
    """A tensor that is nearly right: of a type residuals have, its numbers any bytes."""
    dtype, width = draw(st.sampled_from(["F16", "BF16", "F32", "I8"])), draw(st.sampled_from([4, 4, 4, 3]))
    return dtype, [1, 1, width], draw(st.binary(min_size=width * SIZES[dtype], max_size=width * SIZES[dtype]))


@st.composite
def described(draw: st.DrawFn) -> bytes:
    """A valid file with some metadata and tensors changed; right offsets, often the right hash."""
    metadata, tensors = draw(st.sampled_from(SEEDS))
    metadata, tensors = dict(metadata), dict(tensors)
    metadata.update(draw(st.lists(GOOD, max_size=3)))
    if draw(st.booleans()):
        metadata[draw(KEYS)] = draw(RUBBISH | ANYTHING)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        tensors[draw(st.sampled_from(list(tensors)) | NAMES)] = draw(residuals() | parts())
    if draw(st.booleans()) and all(isinstance(value, str) for value in metadata.values()):
        metadata["content_sha256"] = content_sha256(metadata, tensors)
    return File(assemble(metadata, tensors))


@st.composite
def mislabelled(draw: st.DrawFn) -> bytes:
    """A valid file whose header was edited: types, shapes, offsets, names, or all of it."""
    file = assemble(*draw(st.sampled_from(SEEDS)))
    (length,) = struct.unpack_from("<Q", file)
    header, data = json.loads(file[8 : 8 + length]), file[8 + length :]
    entry = header[draw(st.sampled_from([k for k in header if k != "__metadata__"]))]
    change = draw(st.integers(0, 5))
    if change == 0:
        entry["shape"] = draw(st.lists(NUMBERS, max_size=4) | ANYTHING)
    elif change == 1:
        entry["data_offsets"] = draw(st.lists(NUMBERS, min_size=1, max_size=3) | ANYTHING)
    elif change == 2:
        entry["dtype"] = draw(st.sampled_from([*SIZES, "F4", "C64", "I7"]) | ANYTHING)
    elif change == 3:
        header[draw(NAMES | st.just("__metadata__"))] = draw(ANYTHING | st.just(entry))
    elif change == 4:
        header["__metadata__"]["training"] = draw(st.integers(1, 60_000)) * draw(st.sampled_from(['{"a":', "[", "{"]))
    text = json.dumps(header)
    if change == 5:
        text = draw(
            st.sampled_from(["[" * 90_000, '{"a":' * 50_000, "9" * 99_999, text[:-1] + "," + text[1:], "{}", ""])
        )
    return File(with_header(text.encode(), data))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with bits flipped, cut, longer, or with another header length."""
    file = bytearray(assemble(*draw(st.sampled_from(SEEDS))) if draw(st.booleans()) else GOLDEN)
    for _ in range(draw(st.integers(0, 3))):
        file[draw(st.integers(0, len(file) - 1))] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        file[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 2000)))
    return File(
        bytes(file[: draw(st.integers(0, len(file)))] if draw(st.booleans()) else file) + draw(st.binary(max_size=9))
    )


FRAMED = st.builds(with_header, st.binary(), st.binary())
FILES = st.one_of(described(), described(), mislabelled(), damaged(), FRAMED.map(File), st.binary().map(File))


class Meter:
    """CPU seconds and peak memory of this process, from the kernel's own books."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.start = self._told("VmRSS")

    def grown(self) -> float:
        """Megabytes that the peak lies above the start."""
        return (self._told("VmHWM") - self.start) / 1024

    @staticmethod
    def _told(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.fixture(scope="module")
def meter() -> Meter:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    return Meter()


def read(file: bytes, meter: Meter) -> ConceptResidual | None:
    """The concept, or None and a message that keeps its promises; within the bounds."""
    concept = within(SECONDS, lambda: read_or_told(file))
    assert meter.grown() < MEGABYTES
    return concept


def read_or_told(file: bytes) -> ConceptResidual | None:
    try:
        return concept_from_bytes(file)
    except InfusionError as error:
        told = str(error)
    assert told.isprintable()
    assert 0 < len(told) <= 1000
    return None


def same(one: ConceptResidual, other: ConceptResidual) -> bool:
    told = [{k: v for k, v in vars(c).items() if k != "tensors"} for c in (one, other)]
    halves = [{k: t.half() for k, t in c.tensors.items()} for c in (one, other)]
    return told[0] == told[1] and halves[0].keys() == halves[1].keys() and all(
        torch.equal(t, halves[1][k]) for k, t in halves[0].items()
    )  # fmt: skip


def made(metadata: object, tensors: Parts) -> File:
    return File(assemble(metadata, tensors))


@given(file=FILES)
@example(file=made(PLAIN, {**INT8, "scale.mid": ("F32", [2, 1, 1, 1], bytes(8))}))
@example(
    file=made(
        PLAIN, {"residual.mid": ("I8", [1, 1, 10_000], bytes(10_000)), "scale.mid": ("F32", [10_000, 1], bytes(40_000))}
    )
)
@example(file=made(PLAIN | {"training": "[" * 100_000}, INT8))
@example(file=made(PLAIN | {"word": "cat\x1b[31m"}, INT8))
def test_any_bytes_are_a_concept_or_one_line(file: bytes, meter: Meter) -> None:
    concept = read(file, meter)
    if concept is None:
        return
    assert concept.word.isprintable()
    assert all(t.dim() == 3 and t.isfinite().all() for t in concept.tensors.values())
    saved = concept_bytes(concept)
    again = concept_from_bytes(saved)
    assert same(concept, again)
    assert concept_bytes(again) == saved
    assert concept_from_bytes(concept_bytes(concept, "int8")).tensors.keys() == concept.tensors.keys()


@given(file=described(), bit=st.integers(0))
def test_a_flipped_bit_changes_nothing_unnoticed(file: bytes, bit: int, meter: Meter) -> None:
    concept = read(file, meter)
    if concept is None:
        return
    saved = concept_bytes(concept)
    flipped = bytearray(saved)
    flipped[bit // 8 % len(saved)] ^= 1 << bit % 8
    other = read(File(flipped), meter)
    assert other is None or same(concept_from_bytes(saved), other)


def wide(dtype: str, many: int = 1, numbers: int = MOST_NUMBERS) -> bytes:
    """A file with as many numbers as a concept may have, in `many` tensors."""
    edge = numbers // (4 * many)
    tensors = {f"residual.input.{i}.0": (dtype, [1, edge, 4], bytes(edge * 4 * SIZES[dtype])) for i in range(many)}
    scales = {f"scale.input.{i}.0": ("F32", [1], bytes(4)) for i in range(many) if dtype == "I8"}
    return assemble(PLAIN | {"layout": "layer"}, {**tensors, **scales})


@pytest.mark.parametrize("many", [1, 512])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "I8"])
def test_the_largest_concepts_load_within_the_bounds(dtype: str, many: int) -> None:
    concept = read(wide(dtype, many), Meter())
    assert concept is not None
    assert len(concept.tensors) == many


LARGE = MAX_BYTES - 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda: wide("I8", numbers=LARGE),
        lambda: wide("F16", numbers=LARGE // 2),
        lambda: wide("F16", 900),
        lambda: with_header(b"[" * (MAX_BYTES - 8), b""),
        lambda: with_header(b'{"a":{},' * ((MAX_BYTES - 8) // 8), b""),
        lambda: with_header(b'{"a":{},' * (2**17 - 1), b""),
        lambda: with_header(b'{"a":[' + b"[]," * (2**20 // 3 - 99) + b"[]]}", b""),
        lambda: assemble(PLAIN | {"word": "x" * LARGE}, INT8),
        lambda: assemble(PLAIN | {"word": "x" * (2**20 - 1000)}, INT8),
        lambda: assemble(PLAIN | {"training": '{"a":"' + '\\"' * (2**18 - 1000) + '"}'}, INT8),
        lambda: assemble(PLAIN | {"training": json.dumps({f"{i}": "" for i in range(50_000)})}, INT8),
        lambda: assemble(PLAIN, {f"residual.up.{i}": FP16 for i in range(9000)}),
        lambda: assemble(PLAIN, {"residual.mid": ("I8", [10**17] * 50_000, b"x")}),
        lambda: bytes(MAX_BYTES + 1),
    ],
)
def test_files_as_large_as_they_may_be_keep_to_the_bounds(make: Callable[[], bytes]) -> None:
    file = make()
    assert read(file, Meter()) is None
