"""Translations: every text of the English page in every language, and help pages with the same facts."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from infusion_core.training.apt import AptSettings
from infusion_core.training.residual import ResidualSettings
from infusion_core.training.settings import TrainSettings
from scripts.locales import COMMANDS, LANGUAGES, LOCALES, faults, read, texts

PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"
TRANSLATED = ("de", "zh")
NODES = sorted(path.stem for path in PAGES.glob("*.md"))
SIMPLE = {
    "Node": {
        "display_name": "Load",
        "inputs": {"file": {"name": "file", "tooltip": "<name> of 2 files in a/b, x=0.5."}},
    }
}
GERMAN = {
    "Node": {"display_name": "Laden", "inputs": {"file": {"name": "file", "tooltip": "x=0.5, <name> von 2 in a/b."}}}
}
ERROR = r"(?<!\*)\*(?:\.\.\.|[a-z])[^*]+\*(?!\*)"  # errors are quoted as the page shows them, in English
PLACE = "Node.inputs.file.tooltip"


def page(node: str, language: str) -> str:
    path = PAGES / f"{node}.md" if language == "en" else PAGES / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


def rows(text: str) -> list[tuple[list[str], list[str]]]:
    """Inputs or outputs that each row of a page's tables is about, and the labels behind them, if there are any."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", cell), re.findall(r"` ([^,`、]+)", cell.strip())) for cell in cells]


def labels(node: str, language: str) -> dict[str, str]:
    """What the page calls a node's inputs and outputs, by their English names."""
    english, translated = read("en")[node], read(language)[node]
    outputs = {english["outputs"][key]["name"]: entry["name"] for key, entry in translated["outputs"].items()}
    return {**outputs, **{key: entry["name"] for key, entry in translated["inputs"].items()}}


def test_there_is_a_folder_for_each_language() -> None:
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(["en", *LANGUAGES])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_in_every_language(language: str) -> None:
    assert faults(read("en"), read(language)) == []


def test_the_page_can_show_every_english_text() -> None:
    assert [place for place, text in texts(read("en")).items() if set(text) & set(COMMANDS) or not text] == []


@pytest.mark.parametrize(
    ("tooltip", "said"),
    [
        ("", "is empty"),
        ("{} x=0.5 <name> 2 a/b", f"has a sign of {COMMANDS}"),
        (SIMPLE["Node"]["inputs"]["file"]["tooltip"], "is still English"),
        ("x=0.5 <Name> 2 a/b", "lacks <name>"),
        ("x=0,5 <name> 2 a/b", "lacks x=0.5"),
        ("x=0.5 <name> 3 a/b", "lacks 2"),
        ("x=0.5 <name> 2 a/c", "lacks a/b"),
    ],
)
def test_a_fault_is_named(tooltip: str, said: str) -> None:
    wrong = copy.deepcopy(GERMAN)
    wrong["Node"]["inputs"]["file"]["tooltip"] = tooltip
    assert f"{PLACE} {said}" in faults(SIMPLE, wrong)


def test_texts_without_fault_and_texts_too_few_or_too_many() -> None:
    assert faults(SIMPLE, GERMAN) == []
    less = copy.deepcopy(GERMAN)
    del less["Node"]["inputs"]["file"]["tooltip"]
    assert faults(SIMPLE, less) == [f"{PLACE} is missing"]
    assert f"{PLACE} is left over" in faults(less, GERMAN)


def test_every_node_has_its_help_pages() -> None:
    assert sorted(read("en")) == NODES
    assert {path.name: sorted(file.stem for file in path.iterdir()) for path in PAGES.iterdir() if path.is_dir()} == {
        node: list(TRANSLATED) for node in NODES
    }


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("node", NODES)
def test_a_translated_page_has_what_the_english_one_has(node: str, language: str) -> None:
    english, translated = page(node, "en"), page(node, language)
    assert translated.startswith(f"# {read(language)[node]['display_name']}\n")
    assert [names for names, _ in rows(translated)] == [names for names, _ in rows(english)]
    for pattern in (r"`[^`]+`", r"\d+", ERROR):
        assert sorted(set(re.findall(pattern, translated))) == sorted(set(re.findall(pattern, english)))
    for line in (r"^#+ ", r"^[-\d]\.? ", r"^\|"):
        assert len(re.findall(line, translated, re.M)) == len(re.findall(line, english, re.M))


@pytest.mark.parametrize("language", TRANSLATED)
@pytest.mark.parametrize("node", NODES)
def test_tables_call_inputs_as_the_page_does(node: str, language: str) -> None:
    known = labels(node, language)
    for names, called in rows(page(node, language)):
        assert called == [known[name] for name in names]


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
@pytest.mark.parametrize(("node", "settings"), [("InfusionTrain", ResidualSettings()), ("APTTrain", AptSettings())])
def test_the_page_says_how_often_there_is_a_snapshot_without_previews(
    node: str, settings: TrainSettings, language: str
) -> None:
    (row,) = [line for line in page(node, language).splitlines() if line.startswith("| `preview_every`")]
    assert re.findall(r"\d+", row) == ["0", str(settings.snapshot_every)]
