"""What a file or a user says reaches the terminal as letters: no markup, no escape sequences, no second line."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infusion_cli import console as terminal
from infusion_cli.inspect import run_inspect
from infusion_core.errors import InfusionError
from infusion_core.residual_file import concept_bytes
from infusion_core.residuals import ConceptResidual

REPOSITORY = Path(__file__).parents[2]
HOSTILE = "[/red][bold]a[/]\x1b]0;title\x07\x1b[2J\nnext\r\u202eright\x9b0m\x7f\ud800[link=http://x]"
SPELT = r"[/red][bold]a[/]\x1b]0;title\x07\x1b[2J next \u202eright\x9b0m\x7f\ud800[link=http://x]"


@pytest.fixture
def shown(monkeypatch):
    """What a terminal that takes colours gets."""
    file = io.StringIO()
    console = terminal.Console(file=file, highlight=False, width=4000, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    return file


def say_a_table(text):
    terminal.say_table(text, [text, text], [[text, text]])


def advance(text):
    with terminal.progress(text, 2) as bar:
        bar(note=text)


@pytest.mark.parametrize(
    "show", [terminal.say, say_a_table, advance, lambda text: terminal.say_facts(text, {text: text})]
)
def test_text_is_shown_as_it_is(show, shown):
    show(HOSTILE)
    out = shown.getvalue()
    assert SPELT in out
    assert not any(sign in out for sign in ("\x1b]", "\x1b[2J\n", "\x07", "\x9b", "\x7f", "\u202e", "\ud800"))


def test_an_error_is_shown_as_it_is(capsys):
    with pytest.raises(SystemExit):
        terminal.fail(InfusionError(HOSTILE))
    assert capsys.readouterr().err == f"Error: {SPELT}\n"


def test_inspect_cannot_be_made_to_lie(tmp_path, shown):
    lies = {"word": "dog", "base": "sdxl", "file_bytes": "1", "mean_norm": "9", "training": "none", "note": "[/red]"}
    concept = ConceptResidual("cat", "block", {"mid": torch.ones(1, 1, 128)}, "tinyworld", 128, training=lies)
    file = tmp_path / "c.safetensors"
    file.write_bytes(concept_bytes(concept))
    run_inspect(file, as_json=True, out=tmp_path)
    facts = json.loads(shown.getvalue())
    assert (facts["word"], facts["base"], facts["file_bytes"]) == ("cat", "tinyworld", file.stat().st_size)
    assert facts["training"] == lies
    assert json.loads((tmp_path / "report.json").read_text()) == facts
    run_inspect(file, as_json=False)
    assert "[/red]" in shown.getvalue()


def test_json_is_ascii_without_control_characters(shown):
    terminal.say_json({HOSTILE: HOSTILE})
    assert json.loads(shown.getvalue()) == {HOSTILE: HOSTILE}
    assert all(" " <= letter <= "~" or letter == "\n" for letter in shown.getvalue())


def test_output_that_is_not_unicode_spells_letters_out(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    terminal.show_anything()
    print("猫", file=out, flush=True)
    assert out.buffer.getvalue() == b"\\u732b\n"


@pytest.mark.parametrize("folder", ["infusion_cli", "infusion_core", "infusion_lab", "infusion_cluster", "nodes"])
def test_nobody_else_prints(folder):
    for path in (REPOSITORY / folder).rglob("*.py"):
        if path == REPOSITORY / "infusion_cli" / "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "rich" for name in names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"), path


def test_the_numbers_of_a_table_are_whole_in_a_narrow_terminal(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "console", terminal.Console(file=file, width=60))
    numbers = ["0.446", "0.362", "100%", "0.0841", "25%"]
    header = ["", "picture error", "concept error", "gap closed", "prompt error", "photos' layout"]
    terminal.say_table("Means", header, [["a method with a name of many words", *numbers]])
    assert all(number in file.getvalue() for number in numbers)
    assert "…" not in file.getvalue()


def test_a_library_that_a_command_misses_is_named(tmp_path):
    """Found out when the command runs, since commands import no more than they need."""
    start = "import sys; sys.modules['diffusers'] = None; from infusion_cli.__main__ import main; main()"
    asked = ["generate", "--prompt", "a circle", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", start, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: diffusers is not installed; run in the project's folder: pip install -e '.[standalone]'\n"
    )
