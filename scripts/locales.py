"""Write locales/en/nodeDefs.json from the nodes themselves, and say what is wrong with the translations beside it.

python scripts/locales.py            with the newest ComfyUI: an older one does not have every input
python scripts/locales.py --check    the translations only; needs no ComfyUI
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comfyui_process.host import REPOSITORY, require_host
from comfyui_process.server import Server

LOCALES = REPOSITORY / "locales"
LANGUAGES = ("de", "es", "fr", "ja", "ko", "zh")
COMMANDS = "{}@|"  # the page's translator obeys these instead of showing them, and fails at a bare pair of braces
WORD_FOR_WORD = re.compile(r"<\w+>|[\w.]+=[\d.]*\d|\w+(?:[/.][\w-]+)+|\d+(?::\d+)?")  # placeholders, paths, numbers
Definitions = dict[str, Any]


def definitions(server: Server) -> Definitions:
    """Names and tooltips of this pack's nodes in the format of ComfyUI's translations."""
    found = {}
    for name, info in sorted(server.get("/object_info").items()):
        if info["category"] != "Infusion":
            continue
        outputs = {
            str(i): {"name": label, "tooltip": tip or ""}
            for i, (label, tip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        }
        found[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": dict(_inputs(info["input"])),
            "outputs": outputs,
        }
    return found


def _inputs(groups: dict[str, Any], within: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Key, name and tooltip of each input; those of a choice's options are called ``choice_input`` by the page."""
    for group in ("required", "optional"):
        for key, spec in groups.get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield within + key, {"name": options.get("display_name") or key, "tooltip": options.get("tooltip", "")}
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    yield from _inputs(option["inputs"], f"{within}{key}_")


def texts(definition: Definitions, within: str = "") -> dict[str, str]:
    """Every text by its place, such as ``InfusionTrain.inputs.word.tooltip``."""
    found = {}
    for key, value in definition.items():
        found.update(texts(value, f"{within}{key}.") if isinstance(value, dict) else {within + key: value})
    return found


def faults(english: Definitions, translated: Definitions) -> list[str]:
    """What a reader of the translation would stumble over, a line for each; names may be the same in two languages."""
    source, target = texts(english), texts(translated)
    return [
        *(f"{place} is missing" for place in source.keys() - target.keys()),
        *(f"{place} is left over" for place in target.keys() - source.keys()),
        *(f"{place} is empty" for place, text in target.items() if not text.strip()),
        *(f"{place} has a sign of {COMMANDS}" for place, text in target.items() if set(text) & set(COMMANDS)),
        *(f"{place} is still English" for place in same(source, target) if not place.endswith(".name")),
        *(
            f"{place} lacks {part}"
            for place, text in target.items()
            for part in WORD_FOR_WORD.findall(source.get(place, ""))
            if part not in text
        ),
    ]


def same(source: dict[str, str], target: dict[str, str]) -> list[str]:
    """Where two languages have one text."""
    return [place for place, text in target.items() if text.strip() and text == source.get(place)]


def read(language: str) -> Definitions:
    """The definitions of a language as they lie in the repository."""
    found: Definitions = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return found


def write_english() -> None:
    """Ask a ComfyUI for the nodes as it describes them."""
    host = require_host()
    with tempfile.TemporaryDirectory() as base:
        server = Server(host, Path(base))
        try:
            text = json.dumps(definitions(server), indent=2, ensure_ascii=False) + "\n"
        finally:
            server.stop()
    (LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="leave English as it is")
    if not parser.parse_args().check:
        write_english()
    found = [f"{language}: {fault}" for language in LANGUAGES for fault in sorted(faults(read("en"), read(language)))]
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
