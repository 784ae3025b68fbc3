"""A run that dies at any write, any number of times, and is resumed leaves what an uninterrupted run leaves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .conftest import COUNT
from .crashing import DEAD, STEPS, Crashing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")
EXAMPLES = int(os.environ.get(COUNT, 0))  # none in the suite, where a few places do
QUICK_PLACES = 10
NUMBERS = ("losses", "validation", "snapshots", "settings")


@dataclass(frozen=True)
class Bench:
    """A place to train in, and what an uninterrupted run leaves there."""

    crashing: Crashing
    photos: Path
    folder: Path
    writes: int
    whole: dict[str, object]

    def after(self, *crashes: tuple[int, bool]) -> dict[str, object]:
        """What is left when every run but the last dies, at a write number or in the middle of it."""
        out = self.folder / "crashed" / "cat.safetensors"
        _clear(out.parent)
        resume = False
        for place, torn in crashes:
            ended = self.crashing.train(self.photos, out, resume, place, torn)
            if ended.code == 0:
                break  # it had fewer writes to make
            assert ended.code == DEAD, ended.said
            resume = _resumable(out)
        ended = self.crashing.train(self.photos, out, resume)
        assert ended.code == 0, ended.said
        return left(out)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "photos").mkdir()
    for index, colour in enumerate(("red", "teal")):
        Image.new("RGB", (4, 4), colour).save(folder / "photos" / f"{index}.png")
    crashing = Crashing()
    out = folder / "crashed" / "cat.safetensors"
    ended = crashing.train(folder / "photos", out)
    assert ended.code == 0, ended.said
    yield Bench(crashing, folder / "photos", folder, ended.writes, left(out))
    crashing.close()


def test_a_run_that_dies_at_a_write_resumes_to_the_same_bytes(bench: Bench) -> None:
    assert bench.writes >= 50
    assert len(bench.whole["losses"]) == len(bench.whole["snapshots"]) == STEPS  # type: ignore[arg-type]
    every = range(1, bench.writes + 1)
    if EXAMPLES:
        some = [(place, torn) for place in every for torn in (False, True)]
    else:
        some = [(place, bool(place % 2)) for place in every[3 :: -(-bench.writes // QUICK_PLACES)]]
    assert not [crash for crash in some if bench.after(crash) != bench.whole]


@settings(max_examples=max(5, EXAMPLES // 40))  # five runs in each
@given(st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=4))
def test_it_may_die_again_and_again(bench: Bench, crashes: list[tuple[int, bool]]) -> None:
    assert bench.after(*crashes) == bench.whole


def left(out: Path) -> dict[str, object]:
    """The bytes of the concept and of every snapshot, and the numbers of the report; nothing else may lie there but
    what is set aside of a run that died before it had a state."""
    report = json.loads(out.with_name("report.json").read_text())
    files = {
        p.relative_to(out.parent).as_posix(): p
        for p in out.parent.rglob("*")
        if p.is_file() and p.parent.name != "earlier"
    }
    concepts = {name: path.read_bytes() for name, path in files.items() if path.suffix == ".safetensors"}
    return {**concepts, **{n: report[n] for n in NUMBERS if n in report}, "names": sorted(files)}


def _resumable(out: Path) -> bool:
    return (out.with_suffix(".snapshots") / "state.safetensors").exists()


def _clear(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
