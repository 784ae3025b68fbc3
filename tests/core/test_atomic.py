"""Files that are whole at any moment, and what becomes of the temporary ones of processes that died."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infusion_core.atomic import check_writable, clear_leftovers, write_atomic, write_new
from infusion_core.errors import InfusionError
from infusion_core.locks import hold

ROOT = Path(__file__).parents[2]
KILLED = """
import os, sys
from pathlib import Path
from infusion_core import atomic
def stop(_): print("there", flush=True); sys.stdin.read() or os._exit(137)
os.fsync = stop
atomic.write_atomic(Path(sys.argv[1]), b"new")
"""


def writer(path):
    """A process that stands still in the middle of a write; it dies when its input ends."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               cwd=ROOT)  # fmt: skip
    assert process.stdout.readline() == b"there\n"
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_living_writers_temporary_file_stays_and_a_dead_ones_goes(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / ".infusion-mine.tmp").write_bytes(b"the user's")
    process = writer(tmp_path / "file")
    assert len(names(tmp_path)) == 3
    write_atomic(tmp_path / "other", b"")
    assert len(names(tmp_path)) == 4
    process.communicate(b"")
    assert process.returncode == 137
    assert len(names(tmp_path)) == 4
    assert (tmp_path / "file").read_bytes() == b"old"
    write_atomic(tmp_path / "file", b"newest")
    assert names(tmp_path) == [".infusion-mine.tmp", "file", "other"]
    assert (tmp_path / "file").read_bytes() == b"newest"


def test_a_name_of_the_greatest_length_is_written_and_a_longer_one_is_an_error(tmp_path):
    longest = "a" * 255
    write_atomic(tmp_path / longest, b"x")
    for path in (tmp_path / (longest + "a"), tmp_path / longest / "below"):
        with pytest.raises(InfusionError, match=r"^cannot write .*; free some space or choose another place"):
            write_atomic(path, b"x")
    assert names(tmp_path) == [longest]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_permissions_are_as_the_user_wishes(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_the_folder_is_on_the_disk_after_its_new_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((os.fstat(number).st_ino, names(tmp_path))))
    write_atomic(tmp_path / "file", b"x")
    assert seen[-1] == (tmp_path.stat().st_ino, ["file"])


@pytest.mark.parametrize("links", [True, False])
def test_of_many_threads_that_write_one_name_one_gets_it(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    won = []
    start = threading.Barrier(16)

    def write(number):
        start.wait()
        if write_new(tmp_path / "name", bytes([number]) * 10):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "name").read_bytes() == bytes(won) * 10
    assert names(tmp_path) == ["name"]


def test_a_place_that_was_kept_for_nothing_is_free_again(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "replace", no_links)
    with pytest.raises(InfusionError, match="cannot write"):
        write_new(tmp_path / "name", b"x")
    assert names(tmp_path) == []


def no_links(*_):
    raise OSError(errno.EPERM, "not here")


def test_a_folder_is_tried_before_it_is_needed(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    with pytest.raises(InfusionError, match=r"cannot write .*file.*; free some space"):
        check_writable(tmp_path / "file")


def test_a_folder_that_is_not_there_holds_no_leftovers(tmp_path):
    clear_leftovers(tmp_path / "gone")


def test_a_lock_has_one_holder_and_ends_with_its_file(tmp_path):
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert hold(first.fileno()) == "ours"
        assert hold(second.fileno()) == "others"
        first.close()
        assert hold(second.fileno()) == "ours"
