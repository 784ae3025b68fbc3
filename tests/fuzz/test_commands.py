"""Command lines that break some options of a working one: an exit code and one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infusion_cli import app
from infusion_core.embedded.model import load_model
from infusion_core.embedded.tinyworld import CONCEPTS, training_images
from infusion_core.residual_file import save_concept
from infusion_core.residuals import zero_residual

CODES = (0, 1, 2, 130)
STRANGE = (
    "", " ", "x" * 300, "[/red][bold]x", "\x1b]0;x\x07\x1b[2J", "a\nb", "\udcff", "\0", "\u202ex", "{}", "{0}",
    "--help", "-", "~", "猫", "<x>", "a" * 100_000,
)  # fmt: skip
NUMBERS = (
    "0", "-1", "1e3", "nan", "inf", "-inf", "1e309", "0x10", str(10**9), str(2**63), str(2**64), str(10**30),
    "9" * 5000,
)  # fmt: skip
PATHS = (
    "fifo", "/dev/null", "/dev/zero", "/dev/tty", ".", "..", "gone", "photos/0.png/x", "y" * 300,
    "y" * 245 + ".safetensors", "photos", "photos/0.png", "red.safetensors", "empty", "a/" * 3000,
)  # fmt: skip

texts, numbers = st.sampled_from(STRANGE), st.sampled_from((*NUMBERS, *STRANGE))
paths = st.sampled_from((*PATHS, *STRANGE)).filter(lambda path: path != "~")
files = st.builds("{}{}".format, paths, st.sampled_from(("", ":", ":nan", ":1e30", ":0.5", ":-inf", "::1")))
counts = numbers.filter(lambda number: number != "1e3")

# Per command its options: a value with which it works at once, and what may stand there instead.
TRAIN = {
    "images": ("photos", paths), "word": ("red", texts), "out": ("out/x.safetensors", paths), "steps": ("1", counts),
    "model": ("tinyworld", paths), "config": (None, paths), "layout": ("block", texts), "batch-size": ("1", counts),
    "accumulation": ("1", counts), "learning-rate": ("0.01", numbers), "schedule": ("cosine", texts),
    "weighting": ("uniform", texts), "bins": ("1", counts), "template": ("a {}", texts),
    "snapshot-every": ("1", counts), "validation-draws": ("1", counts), "continue": (None, paths),
    "storage": ("int8", texts), "seed": ("0", counts),
}  # fmt: skip
GENERATE = {
    "prompt": ("a red", texts), "out": ("out", paths), "model": ("tinyworld", paths), "config": (None, paths),
    "concept": ("red.safetensors", files), "negative": ("", texts), "count": ("1", counts), "steps": ("1", counts),
    "guidance": ("1", numbers), "base-latent": ("shared", texts), "residual-start": ("0", numbers),
    "residual-end": ("1", numbers), "replacement-start": (None, numbers), "replacement-end": (None, numbers),
    "seed": ("0", counts),
}  # fmt: skip
INSPECT = {"out": (None, paths), "seed": ("0", counts)}
# These two are hours when they work: they always have one option that nothing can be made of.
DEMO = {"out": ("out", paths), "steps": ("1", counts), "layout": ("block", texts), "seed": ("0", counts)}
LAB = {
    "out": ("out", paths), "only": (None, texts), "concept": (None, texts), "most-steps": ("1", counts),
    "model": ("tinyworld", paths), "config": (None, paths), "dataset": ("photos", paths), "clip": ("photos", paths),
    "dino": ("photos", paths), "token": ("sks", texts), "count": ("1", counts), "limit": ("1", counts),
    "pictures": ("photos", paths), "figure-concepts": ("1", counts), "figure-prompts": ("1", counts),
    "samples": ("2", counts), "at-steps": ("1", counts), "pairs": ("1", counts), "second-token": ("ktn", texts),
    "seed": ("0", counts),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Photos, a concept, a pipe; TinyWorld is read once."""
    place = tmp_path_factory.mktemp("commands")
    (place / "photos").mkdir()
    (place / "empty").mkdir()
    for i, picture in enumerate(training_images(CONCEPTS["ember"], 2)):
        picture.save(place / "photos" / f"{i}.png")
    world = load_model("tinyworld")
    save_concept(place / "red.safetensors", zero_residual(world.denoiser.base, "red"))
    os.mkfifo(place / "fifo")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train", "generate"):
            patch.setattr(f"infusion_cli.{module}.load_model", lambda name, config=None: loaded(world, name, config))
        patch.chdir(place)
        yield place


def loaded(world, name, config):
    return world if (name, config) == ("tinyworld", None) else load_model(name, config=config)


def run(*args):
    """Exit code, output and errors of a command line."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["infusion", *args]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app.run()
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def check(args):
    code, out, err = run(*args)
    assert code in CODES
    assert all(letter.isprintable() or letter == "\n" for letter in out + err)
    if code == 1:
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert len(err) < 1100


@st.composite
def lines(draw, command, options, *more):
    """A command line with up to three of its options broken, in any order."""
    broken = draw(st.sets(st.sampled_from(sorted(options)), min_size=1, max_size=3))
    given = {name: draw(hostile) if name in broken else good for name, (good, hostile) in options.items()}
    parts = [[f"--{name}={value}"] if draw(st.booleans()) else [f"--{name}", value]
             for name, value in given.items() if value is not None]  # fmt: skip
    return [command, *(word for part in draw(st.permutations(parts)) for word in part), *more]


@given(lines("train", TRAIN))
@example(["train", "--images=photos", "--word=red", "--out=out/x.safetensors", "--steps=1", f"--seed={2**64 - 1}"])
@example(["train", "--images=photos", "--word=red", "--out=out/x.safetensors", "--steps=1", f"--seed={10**30}"])
@example(["train", "--images=photos", "--word=red", "--out=out/x.safetensors", "--steps=1", f"--bins={10**9}"])
@example(["train", "--images=fifo", "--word=red", "--out=out/x.safetensors"])
@example(["train", "--images=photos", "--word=red", "--out=out/x.safetensors", "--resume", "--steps=1"])
def test_train(args):
    check(args)


@given(lines("generate", GENERATE))
@example(["generate", "--prompt=a red", "--out=out", "--steps=1001", "--count=1"])
@example(["generate", "--prompt=a red", "--out=out", "--steps=1", "--count=2", "--guidance=1", f"--seed={2**64 - 1}"])
@example(["generate", "--prompt=a red", "--out=out", "--concept=red.safetensors:nan", "--steps=1", "--count=1"])
@example(["generate", "--prompt=\udcff", "--out=out", "--steps=1", "--count=1"])
def test_generate(args):
    check(args)


@given(paths.flatmap(lambda file: lines("inspect", INSPECT, *([file] if not file.startswith("-") else ["--", file]))))
@example(["inspect", "fifo"])
@example(["inspect", "/dev/zero"])
@example(["inspect", "red.safetensors", "--json"])
def test_inspect(args):
    check(args)


@given(st.one_of(lines("demo", DEMO, "--concept=none"), lines("lab", LAB, "--method=none")))
def test_demo_and_lab(args):
    check(args)


@given(st.lists(st.one_of(texts, st.text(max_size=8), st.sampled_from(("--seed", "train", "--resume"))), max_size=4))
def test_any_words(args):
    check(args)
