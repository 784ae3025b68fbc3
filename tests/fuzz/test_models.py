"""Model folders and checkpoints, broken with knowledge of what they are: a model that works, or one clear sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from infusion_core.embedded.model import load_model
from infusion_core.errors import InfusionError
from tests.embedded.ldm import save_single_file
from tests.embedded.tiny import KINDS, save_tiny

from .bounds import within

CPU = 3  # seconds for one folder, all threads together; one that is whole takes 0.1
MEMORY = 300_000  # KB that all folders together may add to the process


NASTY = [
    *(None, True, False, -1, 0, 1, 2, 3, 4, 5, 8, 64, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, -0.5, 0.0, 0.5, 1e-5),
    *(1e30, float("nan"), float("inf"), "", "x", "\x1b[31m\n", "null", "DDIMScheduler", "AutoencoderTiny", "System"),
    *("UNet2DConditionModel", "FlowMatchEulerDiscreteScheduler", "BertModel", "cuda", "CrossAttnDownBlock2D"),
    *("DownBlock2D", "gelu", "text_time", "squaredcos_cap_v2", "v_prediction", "../../etc/passwd", "<|endoftext|>"),
    *([], {}, [1], [2, 2], [4, 8], [8, 4], [10**9] * 2, [1] * 10_000, [[[[]]]], {"content": "a"}),
]
values = st.one_of(
    st.sampled_from(NASTY),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(st.integers(-2, 20), lambda inner: st.lists(inner, max_size=4), max_leaves=6),
)
RAW = [
    *(b"", b"{", b"[]", b"null", b"NaN", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000, b" " * 2**24),
    *(b'{"x": 1e999}', b"9" * 100_000, b"\x80\x04K\x01.", (2**40).to_bytes(8, "little") + b"{}"),
    (8).to_bytes(8, "little") + b'{"a":{}}',
]
raw = st.sampled_from(RAW)
places = st.integers(0, 10**6)


@st.composite
def faults(draw):
    """One thing to do to a folder, as text and numbers, so that a failing example can be read."""
    kind = draw(
        st.sampled_from(
            ["edit"] * 8 + ["tensor"] * 5 + ["raw", "cut", "flip", "drop", "swap", "pickle", "fifo", "folder"]
        )
    )
    if kind == "edit":
        return (
            kind,
            draw(places),
            draw(places),
            draw(st.sampled_from(["set", "set", "set", "delete", "add"])),
            draw(values),
        )
    if kind == "tensor":
        how = st.sampled_from(["drop", "half", "rename", "reshape", "add", "dtype", "swap", "prefix"])
        return kind, draw(places), draw(places), draw(how), draw(places)
    if kind == "raw":
        return kind, draw(places), draw(raw)
    return kind, draw(places), draw(places)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder of each kind, and a checkpoint beside those that have one."""
    root = tmp_path_factory.mktemp("whole")
    return {kind: save_tiny(root / kind, kind) for kind in KINDS}


@given(kind=st.sampled_from(KINDS), broken=st.lists(faults(), min_size=1, max_size=3))
@example(kind="words", broken=[])
@example(kind="sd1", broken=[])
@example(kind="sdxl", broken=[])
def test_a_folder_works_or_is_refused_in_a_sentence(whole, tmp_path_factory, kind, broken):
    folder = tmp_path_factory.getbasetemp() / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole[kind], folder)
    for fault, *how in broken:
        FAULTS[fault](folder, *how)
    works_or_is_refused(folder, folder, None, must_work=not broken)


@given(broken=st.lists(faults(), min_size=1, max_size=2))
@example(broken=[])
def test_a_checkpoint_works_or_is_refused_in_a_sentence(checkpoint, tmp_path_factory, broken):
    folder = tmp_path_factory.getbasetemp() / "broken_file"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    for fault, *how in broken:
        FAULTS[fault](folder, *how)
    works_or_is_refused(folder / "model.safetensors", folder, folder, must_work=not broken)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Configs and, beside them, a checkpoint in the original layout."""
    from tests.embedded.factories import save_model

    root = tmp_path_factory.mktemp("checkpoint")
    folder = save_model(root / "folder", context=16, channels=(8, 8, 8))
    save_single_file(folder, "sd1", folder / "model.safetensors")
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    return folder


def refusal(model: Path, config: Path | None) -> str | None:
    """What is said of a model that is not taken; None of one that works."""
    try:
        works(load_model(str(model), "cpu", config))
        return None
    except InfusionError as error:
        return str(error)


def works_or_is_refused(model: Path, folder: Path, config: Path | None, must_work: bool) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = within(CPU, lambda: refusal(model, config))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
    assert not (refused and must_work), refused
    assert torch.is_grad_enabled()  # nothing of a broken-off load stays behind
    if refused:
        assert refused.isprintable()
        assert str(folder) in refused
        assert refused[-1] not in ":,;(", "the sentence ends in the middle"


def works(model) -> None:
    """Two prompts that differ, one pass of the network and one picture, all finite."""
    words = getattr(model.text.encoders[0].tokenizer, "ids", ("a dog", "the beach"))  # a word list may have lost some
    encoded = [model.text.encode(prompt).conditioning for prompt in list(words)[:2]]
    assert not torch.equal(encoded[0].context, encoded[1].context)
    latent = model.noise(1, 0)
    with torch.no_grad():
        said = model.denoiser.unet(
            latent, 5, encoded[0].context, added_cond_kwargs=dict(encoded[0].extras) or None
        ).sample
        picture = model.vae.decode(latent).sample
    assert said.shape == latent.shape
    assert picture.shape == (1, 3, model.resolution, model.resolution)
    for tensor in (*(e.context for e in encoded), said, picture, model.denoiser.sigmas):
        assert tensor.isfinite().all()


def _files(folder: Path, *ends: str) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name.endswith(ends or ("",)))


def _edit(folder: Path, which: int, where: int, how: str, value: object) -> None:
    files = _files(folder, ".json")
    if not files:
        return
    file = files[which % len(files)]
    try:
        told = json.loads(file.read_text())
    except (ValueError, RecursionError):
        return
    slots = list(_slots(told))
    if not slots:
        return
    # Half of the edits go to the outermost keys, which are few among thousands of words.
    outer = [slot for slot in slots if slot[0] is told]
    parent, key = (outer if where % 2 and outer else slots)[where // 2 % len(outer if where % 2 and outer else slots)]
    if how == "delete":
        del parent[key]
    elif how == "add" and isinstance(parent, dict):
        parent[f"{key}_2"] = value
    else:
        parent[key] = value
    file.write_text(json.dumps(told))


def _slots(told):
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in items:
        yield told, key
        yield from _slots(value)


def _tensor(folder: Path, which: int, where: int, how: str, more: int) -> None:
    files = [f for f in _files(folder, ".safetensors") if f.read_bytes()[8:9] == b"{"]
    if not files:
        return
    file = files[which % len(files)]
    try:
        tensors = load_file(file)
    except Exception:
        return
    names = sorted(tensors)
    name, other = names[where % len(names)], names[more % len(names)]
    if how == "half":
        tensors = {n: tensors[n] for n in names[:: 2 + more % 5]}
    elif how == "add":
        tensors[f"{name}.more"] = torch.zeros(more % 9)
    elif how == "swap":
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
    elif how == "prefix":
        tensors = {f"x.{n}": t for n, t in tensors.items()}
    elif how == "dtype":
        kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
        tensors[name] = tensors[name].to(kinds[more % len(kinds)])
    else:
        tensor = tensors.pop(name)
        if how == "rename":
            tensors[f"{name[: more % 20]}{chr(more % 0x300)}"] = tensor
        elif how == "reshape":
            shapes = [(-1,), (1, *tensor.shape), tuple(reversed(tensor.shape)), (*tensor.shape, 1)]
            tensors[name] = tensor.reshape(shapes[more % len(shapes)])
    save_file(tensors, file)


def _replace(folder: Path, which: int, data: bytes) -> None:
    files = _files(folder)
    if files:
        files[which % len(files)].write_bytes(data)


def _cut(folder: Path, which: int, where: int) -> None:
    files = _files(folder)
    if files:
        file = files[which % len(files)]
        data = file.read_bytes()
        file.write_bytes(data[: where % (len(data) + 1)])


def _flip(folder: Path, which: int, where: int) -> None:
    """Change a byte of a text or of a header; a byte of the weights gives other weights, which nobody can tell."""
    files = _files(folder)
    if not files:
        return
    file = files[which % len(files)]
    data = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
    if data:
        data[where % min(end, len(data))] ^= 1 << where % 8
        file.write_bytes(data)


def _drop(folder: Path, which: int, where: int) -> None:
    things = sorted(folder.rglob("*"))
    if things:
        thing = things[which % len(things)]
        if thing.is_dir():
            shutil.rmtree(thing)
            if where % 2:
                thing.mkdir()  # an empty tokenizer, for one
        else:
            thing.unlink()


def _swap(folder: Path, which: int, where: int) -> None:
    files = _files(folder)
    if files:
        one, other = files[which % len(files)], files[where % len(files)]
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)


def _pickle(folder: Path, which: int, where: int) -> None:
    files = _files(folder, ".safetensors")
    if files:
        file = files[which % len(files)]
        torch.save({"x": torch.zeros(2)}, file.with_suffix((".bin", ".ckpt", ".pt")[where % 3]))
        file.unlink()


def _fifo(folder: Path, which: int, where: int) -> None:
    files = _files(folder)
    if files:
        file = files[which % len(files)]
        file.unlink()

        os.mkfifo(file)


def _folder(folder: Path, which: int, where: int) -> None:
    files = _files(folder)
    if files:
        file = files[which % len(files)]
        file.unlink()
        file.mkdir()


FAULTS = {"edit": _edit, "tensor": _tensor, "raw": _replace, "cut": _cut, "flip": _flip, "drop": _drop, "swap": _swap,
          "pickle": _pickle, "fifo": _fifo, "folder": _folder}  # fmt: skip
