"""Which way imports point: the core needs torch, safetensors and numpy alone, and knows no host and no door."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = [
    REPOSITORY / "infusion_core" / name
    for name in ("photos.py", "colours.py", "grid.py", "previews.py", "snapshot_grid.py")
]  # Pillow, which every host has
CORE = [p for p in (REPOSITORY / "infusion_core").rglob("*.py") if "embedded" not in p.parts and p not in PICTURES]
MODULES = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for p in CORE]
BLOCKED = ("diffusers", "transformers", "peft", "scipy", "PIL", "comfy", "comfy_api", "folder_paths", "infusion_cli",
           "infusion_lab", "infusion_cluster", "infusion_core.embedded")  # fmt: skip


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


def test_the_core_imports_with_every_host_blocked():
    code = f"""
import importlib, json, sys
import numpy, safetensors.torch, torch
before = set(sys.modules)
for name in {BLOCKED!r}:
    sys.modules[name] = None
for name in {MODULES!r}:
    importlib.import_module(name)
new = {{name.split(".")[0] for name in set(sys.modules) - before - set({BLOCKED!r})}}
print(json.dumps(sorted(new - set(sys.stdlib_module_names) - {{m.split(".")[0] for m in before}})))
"""
    assert json.loads(run(code)) == ["infusion_core"]


def test_importing_the_package_loads_no_host():
    code = "import sys, infusion_core; print({m.split('.')[0] for m in sys.modules})"
    loaded = set(ast.literal_eval(run(code)))
    assert "infusion_core" in loaded
    assert not loaded & {"diffusers", "transformers", "scipy", "PIL", "matplotlib", "typer"}


def imported(path: Path) -> set[str]:
    """Every module a file imports, relative ones spelled out from the repository's root."""
    found, package = set(), path.relative_to(REPOSITORY).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = [*above, *([node.module] if node.module else [])]
            found.add(".".join(module))
            found |= {".".join([*module, alias.name]) for alias in node.names}  # which may be modules too
    return found


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        (
            "infusion_core",
            ("infusion_cli", "infusion_lab", "infusion_cluster", "nodes", "tests", "comfy", "folder_paths", "ray"),
        ),
        ("infusion_cli", ("infusion_lab", "infusion_cluster", "nodes", "tests", "comfy", "ray")),
        ("infusion_lab", ("infusion_cluster", "nodes", "tests", "comfy", "ray")),
        ("infusion_cluster", ("infusion_lab", "nodes", "tests", "comfy")),
        ("nodes", ("infusion_core.embedded", "infusion_cli", "infusion_lab", "tests", "diffusers")),
        ("benchmarks", ("tests",)),
    ],
)
def test_imports_point_one_way(folder, never):
    files = list((REPOSITORY / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            bad = [n for n in never if name == n or name.startswith(f"{n}.")]
            assert not bad, f"{path.relative_to(REPOSITORY)} imports {name}"
