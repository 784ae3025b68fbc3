"""Command lines that break some options of a working one: an exit code and one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

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
APT = {
    "images": ("photos", paths), "word": ("red", texts), "out": ("out/a.safetensors", paths), "steps": ("1", counts),
    "identifier": ("", texts), "model": ("tinyworld", paths), "config": (None, paths), "batch-size": ("1", counts),
    "accumulation": ("1", counts), "learning-rate": ("0.01", numbers), "schedule": ("cosine", texts),
    "weighting": ("uniform", texts), "rank": ("1", counts), "alpha": (None, numbers), "targets": (None, texts),
    "text-rate": ("0", numbers), "prior": (None, paths), "prior-count": ("0", st.sampled_from(("-1", "201", "x"))),
    "prior-weight": ("1", numbers), "stabilisation": ("0", numbers), "alignment": ("0", numbers),
    "temperature": (None, numbers), "template": ("a {}", texts), "snapshot-every": ("1", counts),
    "masks": (None, paths), "stop-at": ("0", numbers), "preview-prompt": (None, texts), "stop": ("never", texts),
    "take": ("last", texts), "storage": ("fp16", texts), "seed": ("0", counts),
}  # fmt: skip
BLEND = {
    "early": ("base", files), "late": ("late.safetensors", files), "prompt": ("a red", texts), "out": ("out", paths),
    "model": ("tinyworld", paths), "config": (None, paths), "mode": ("replacement", texts), "alpha": ("0.5", numbers),
    "distance": (None, texts), "gradient-steps": ("1", st.sampled_from(("0", "-1", "x", "9" * 5000))),
    "every": ("1", counts), "start": ("0", numbers), "end": ("1", numbers), "layers": (None, texts),
    "negative": ("", texts), "count": ("1", counts), "steps": ("1", counts), "guidance": ("1", numbers),
    "seed": ("0", counts),
}  # fmt: skip
ADVISE = {
    "epoch": ("early.safetensors", files), "subject": ("red", texts), "out": ("out", paths), "word": ("", texts),
    "model": ("tinyworld", paths), "config": (None, paths), "images": (None, paths), "clip": (None, paths),
    "dino": (None, paths), "prompt": ("a {} circle", texts), "count": ("1", counts), "steps": ("1", counts),
    "guidance": ("1", numbers), "seed": ("0", counts),
}  # fmt: skip
GRID = {
    "prompt": ("a red", texts), "out": ("out", paths), "strength": ("1", numbers), "step": (None, counts),
    "model": ("tinyworld", paths), "config": (None, paths), "steps": ("1", counts), "guidance": ("1", numbers),
    "seed": ("0", counts),
}  # fmt: skip
INSPECT = {"out": (None, paths), "seed": ("0", counts)}
# These are hours when they work, or start Ray: they always have one option that nothing can be made of.
MANY = {
    "out": ("out", paths), "word": ("red", texts), "model": ("tinyworld", paths), "config": (None, paths),
    "workers": ("1", counts), "together": ("1", counts), "address": ("", texts), "steps": ("1", counts),
    "batch-size": ("1", counts), "learning-rate": ("0.01", numbers), "layout": ("block", texts), "bins": ("1", counts),
    "storage": ("int8", texts), "seed": ("0", counts),
}  # fmt: skip
SERVE = {
    "model": ("tinyworld", paths), "config": (None, paths), "host": ("127.0.0.1", texts), "port": ("8000", counts),
    "address": ("", texts), "replicas": ("1", counts), "batch": ("1", counts), "wait-ms": ("0", counts),
    "waiting": ("1", counts), "steps": ("1", counts), "guidance": ("1", numbers),
}  # fmt: skip
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
    query = next(name for name, _ in world.denoiser.unet.named_modules() if name.endswith("attn2.to_q"))
    width = world.denoiser.unet.get_submodule(query).in_features
    lora = {f"lora_unet_{query.replace('.', '_')}.lora_{way}.weight": torch.zeros(shape)
            for way, shape in (("up", (width, 1)), ("down", (1, width)))}  # fmt: skip
    for epoch in ("early", "late"):
        save_file(lora, place / f"{epoch}.safetensors")
    os.mkfifo(place / "fifo")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train", "generate", "apt", "blend", "advise", "grid"):
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


@given(lines("apt", APT))
@example(["apt", "--images=photos", "--word=red", "--out=out/a.safetensors", "--steps=1", "--identifier=<x>"])
def test_apt(args):
    check(args)


@given(lines("blend", BLEND))
def test_blend(args):
    check(args)


@given(lines("advise", ADVISE, "--epoch=late.safetensors"))
@example(["advise", "--epoch=early.safetensors", "--epoch=late.safetensors", "--subject=red", "--prompt=a {}",
          "--out=out", "--count=1", "--steps=1"])  # fmt: skip
@example(["advise", "--epoch=early.safetensors", "--epoch=late.safetensors", "--subject=red", "--prompt={} {x}",
          "--out=out", "--count=1", "--steps=1"])  # fmt: skip
def test_advise(args):
    check(args)


@given(lines("grid", GRID, "late.safetensors"))
def test_grid(args):
    check(args)


@given(
    st.one_of(
        lines("demo", DEMO, "--concept=none"),
        lines("lab", LAB, "--method=none"),
        lines("train-many", MANY, "empty"),
        lines("serve", SERVE, "--concepts=empty"),
    )
)
def test_what_takes_long(args):
    check(args)


@given(st.lists(st.one_of(texts, st.text(max_size=8), st.sampled_from(("--seed", "train", "--resume"))), max_size=4))
def test_any_words(args):
    check(args)
