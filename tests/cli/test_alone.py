"""Two runs that write one concept: the second is refused while the first one lives."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from infusion_cli.alone import alone
from infusion_cli.train import run_train
from tests.fuzz.crashing import toy_model

from .toy_runs import ROOT, refusal

HOLDER = """
import sys
from pathlib import Path
from infusion_cli.alone import alone
with alone(Path(sys.argv[1])):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_while_the_first_one_lives(toy_run, capsys):
    held = [sys.executable, "-c", HOLDER, str(toy_run.out)]
    first = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert first.stdout.readline() == b"there\n"
    refused = refusal(toy_run)
    assert re.search(rf"another run is writing .*process {first.pid} on .*since 20.*; wait for it, or choose", refused)
    run_train(replace(toy_run, out=toy_run.out.with_name("dog.safetensors")), toy_model())  # beside it is free
    assert "was killed" not in capsys.readouterr().out
    first.kill()
    first.wait()
    run_train(toy_run, toy_model())
    said = " ".join(capsys.readouterr().out.split())
    assert f"an earlier run of cat.safetensors was killed (process {first.pid} on" in said
    run_train(toy_run, toy_model())
    assert "was killed" not in capsys.readouterr().out
    assert not list(toy_run.out.parent.glob(".*"))


def test_a_run_is_alone_in_its_own_process_too(toy_run):
    with alone(toy_run.out):
        assert "another run is writing" in refusal(toy_run)
    with pytest.raises(ZeroDivisionError), alone(toy_run.out):
        _ = 1 / 0
    run_train(toy_run, toy_model())


def test_a_lock_file_that_says_nothing_or_nonsense_is_taken_over(toy_run, capsys):
    toy_run.out.parent.mkdir()
    lock = toy_run.out.with_name(".cat.lock")
    for text in ('{"process": 1', "\x1b[2J" + "a" * 5000, "[" * 900):
        lock.write_text(text)
        with alone(toy_run.out):
            pass
        assert "\x1b" not in capsys.readouterr().out
        assert not lock.exists()
