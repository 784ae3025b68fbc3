"""A training state whose bytes were changed is refused, or is the state that was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infusion_core.errors import InfusionError
from infusion_core.training.state import TrainState, load_state, save_state

STATE = TrainState(
    7,
    {"mid": torch.arange(6.0).reshape(1, 2, 3)},
    {"mid": torch.full((1, 2, 3), 0.25)},
    {"mid": torch.full((1, 2, 3), 0.5)},
    {"mid": torch.tensor(7.0)},
    {"count": torch.tensor(3)},
    {"given": {"word": "cat", "seed": 0}, "course": {"losses": [0.1, 0.2], "validation": [[7, 0.125]]}},
)
Place = st.floats(0, 1, exclude_max=True)
Change = st.tuples(st.sampled_from(("flip", "cut", "insert", "swap", "zero")), Place, Place, st.binary(max_size=8))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    save_state(path, STATE)
    return path


@pytest.fixture(scope="module")
def whole(file: Path) -> bytes:
    return file.read_bytes()


@given(st.lists(Change, min_size=1, max_size=3))
def test_changed_bytes_never_load_as_something_else(
    file: Path, whole: bytes, changes: list[tuple[str, float, float, bytes]]
) -> None:
    data = whole
    for change in changes:
        data = changed(data, *change)
    file.write_bytes(data)
    found = outcome(file)
    assert found == told(STATE) or re.search("is not a training state Infusion can read", str(found))


def outcome(file: Path) -> dict[str, object] | str:
    """What a file holds, or why it cannot be read."""
    try:
        return told(load_state(file))
    except InfusionError as error:
        return str(error)


def changed(data: bytes, how: str, where: float, to: float, more: bytes) -> bytes:
    first, last = sorted((int(where * len(data)), int(to * len(data))))
    if how == "flip" and data:
        return data[:first] + bytes([data[first] ^ (1 << last % 8)]) + data[first + 1 :]
    if how == "cut":
        return data[:first]
    if how == "insert":
        return data[:first] + more + data[first:]
    if how == "swap":
        return data[last:] + data[:last]
    return data[:first] + bytes(last - first) + data[last:]


def told(state: TrainState) -> dict[str, object]:
    """A state as things that can be compared."""
    parts = {name: value for name, value in vars(state).items() if isinstance(value, dict) and name != "told"}
    tensors = {name: {k: (t.shape, t.tolist()) for k, t in part.items()} for name, part in parts.items()}
    return {**tensors, "told": state.told, "step": state.step}
